"""The losses of the first stage of BLIP-2 (Li et al. 2023): contrast, matching and writing, over the same weights.

What differs from the paper: a picture is the mean of its queries' outputs rather than the one of them that is nearest
to the text, so that it is one vector in an index; and a step contrasts several texts of each picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor

from models.qformer.tokens import DEC, PAD


def contrast(pictures: Tensor, texts: Tensor, owner: Tensor, same: Tensor, scale: Tensor, *, mask_own: bool) -> Tensor:
    """Returns the contrastive loss of pictures and several texts of each, float32 [].

    Every text is to find its picture among all pictures, and every picture each of its texts among all others'. With
    `mask_own` the other texts of a picture are left out there, since they are no negatives (MuCo, arXiv 2602.06393),
    and so is whatever says the same. Pictures that have the very text are never its negatives.

    Args:
        pictures: [N, width], of unit length.
        texts: [M, width], of unit length.
        owner: int64 [M], the picture of each text.
        same: bool [M, M], whether two texts are the same.
        scale: what similarities are multiplied by, [].
        mask_own: see above.
    """
    logits = scale * texts @ pictures.T
    own = owner[:, None] == torch.arange(len(pictures), device=owner.device)
    alike = same.float() @ own.float() > 0  # [M, N]: the picture has such a text
    to_pictures = F.cross_entropy(logits.masked_fill(alike & ~own, -torch.inf), owner)
    hidden = alike[:, owner].T if mask_own else same
    hidden = hidden & ~torch.eye(len(texts), dtype=torch.bool, device=hidden.device)
    among = logits[:, owner].T.masked_fill(hidden, -torch.inf)  # [M, M]: of a text's picture, all texts
    to_texts = F.cross_entropy(among, torch.arange(len(texts), device=owner.device))
    return (to_pictures + to_texts) / 2


def hard_negatives(logits: Tensor, banned: Tensor) -> Tensor:
    """Draws, for each row, a column by the softmax of its logits, never a banned one; int64 [rows].

    A row whose columns are all banned gets a column by chance.
    """
    weights = torch.softmax(logits.float().masked_fill(banned, -torch.inf), dim=1)
    weights = weights.nan_to_num(1.0) + (banned.all(1)[:, None])
    return torch.multinomial(weights, 1)[:, 0]


def shifted(text: Tensor) -> Tensor:
    """Returns what is read to write texts, int64 [N, T]: DEC, and the text but for its last token."""
    return F.pad(text[:, :-1], (1, 0), value=DEC)


def written(logits: Tensor, text: Tensor, smoothing: float) -> Tensor:
    """Returns the mean loss of written tokens, float32 []; logits [N, T, V], text int64 [N, T]."""
    return F.cross_entropy(logits.flatten(0, 1).float(), text.flatten(), ignore_index=PAD, label_smoothing=smoothing)
