"""The captioner as two learners, one for each stage of its training; see `models.common.data_parallel.Learner`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor, nn

from models.qformer.model import CaptionModel
from models.qformer.objectives import contrast, hard_negatives, shifted, written
from models.qformer.settings import Recipe
from models.qformer.tokens import PAD


class Batch(NamedTuple):
    """Pictures of a step and their texts.

    Attributes:
        features: float16 [N, WIDTH].
        texts: int64 [N, K, T], K texts of each, in the Q-Former's tokens.
        captions: int64 [N, T], what the decoder is to write, in its own tokens.
    """

    features: Tensor
    texts: Tensor
    captions: Tensor

    def to(self, device: torch.device) -> Batch:
        """Returns it on a device."""
        return Batch(*(part.to(device) for part in self))


class _Learner(nn.Module, ABC):
    """What both stages have: a model, a recipe, and a loss that is the sum of several."""

    layers: Sequence[str] = ()  # both are small enough to be whole on every worker

    def __init__(self, model: CaptionModel, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        model.requires_grad_(True)

    @property
    def smoothing(self) -> float:
        """Of the labels of written tokens; none in evaluation."""
        return self.recipe.label_smoothing if self.training else 0.0

    def weight(self, batch: Batch) -> Tensor:
        """Returns the number of pictures."""
        return torch.tensor(len(batch.features))

    def loss(self, batch: Batch) -> Tensor:
        """Returns the sum of the losses."""
        return torch.stack(list(self.losses(batch).values())).sum()

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the losses by their names."""


class Aligning(_Learner):
    """Stage 1: contrast, matching and writing by the Q-Former alone."""

    def __init__(self, model: CaptionModel, recipe: Recipe) -> None:
        super().__init__(model, recipe)
        model.decoder.requires_grad_(False)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the losses of contrast and writing and, in training, of matching, whose negatives are drawn."""
        model, several = self.model, batch.texts.shape[1]
        text = _cut(batch.texts.flatten(0, 1))
        picture = model.qformer.sight(batch.features.float())
        first = text[::several]
        queries, told = model.qformer.write(picture, shifted(first))
        pictures, texts = model.picture_vectors(queries), model.text_vectors(text)
        losses = {
            "contrast": _contrast(model, pictures, texts, text, self.recipe),
            "writing": written(F.linear(told, model.qformer.words.weight), first, self.smoothing),
        }
        if self.training:
            owned = (batch.texts[:, :, None, : first.shape[1]] == first).all(-1).any(1)  # [N, N]: a picture's, a text
            losses["matching"] = self._matching(picture, first, pictures.detach() @ texts.detach()[::several].T, owned)
        return losses

    def _matching(self, picture: Tensor, text: Tensor, near: Tensor, owned: Tensor) -> Tensor:
        """Returns the loss of telling a picture's text from one that is near, and a text's picture likewise.

        Args:
            picture: tokens, [N, T, dim].
            text: int64 [N, T].
            near: similarity of pictures and texts, [N, N].
            owned: bool [N, N], whether a picture has a text.
        """
        count, near = max(1, round(len(text) * self.recipe.matched)), near * self.model.scale.detach()
        wrong_text = hard_negatives(near[:count], owned[:count])
        wrong_picture = hard_negatives(near.T[:count], owned.T[:count])
        shown = torch.cat([picture[:count], picture[:count], picture[wrong_picture]])
        told = torch.cat([text[:count], text[wrong_text], text[:count]])
        logits = self.model.matches(self.model.qformer.match(shown, told)).mean(1)[:, 0]
        truth = torch.tensor([1.0, 0.0, 0.0], device=logits.device).repeat_interleave(count)
        # among pictures with one text there may be no wrong one
        pairs = ((owned[:count], wrong_text), (owned.T[:count], wrong_picture))
        chosen = [known.gather(1, wrong[:, None])[:, 0] for known, wrong in pairs]
        real = ~torch.cat([torch.zeros_like(chosen[0]), *chosen])
        return F.binary_cross_entropy_with_logits(logits[real], truth[real])


class Writing(_Learner):
    """Stage 2: captions through the decoder.

    What differs from the paper: the contrast goes on, so that the queries stay in the space of the texts.
    """

    def __init__(self, model: CaptionModel, recipe: Recipe) -> None:
        super().__init__(model, recipe)
        model.matches.requires_grad_(False)
        if model.decoder.frozen:
            model.decoder.model.requires_grad_(False)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the losses of contrast and of the caption's tokens."""
        model, text = self.model, _cut(batch.texts.flatten(0, 1))
        queries = model.see(batch.features)
        pictures, texts = model.picture_vectors(queries), model.text_vectors(text)
        return {
            "contrast": _contrast(model, pictures, texts, text, self.recipe),
            "writing": model.decoder.loss(queries, batch.captions, self.smoothing),
        }


def _contrast(model: CaptionModel, pictures: Tensor, texts: Tensor, text: Tensor, recipe: Recipe) -> Tensor:
    owner = torch.arange(len(pictures), device=text.device).repeat_interleave(len(texts) // len(pictures))
    same = (text[:, None] == text[None]).all(-1)
    return contrast(pictures, texts, owner, same, model.scale, mask_own=recipe.mask_own)


def _cut(text: Tensor) -> Tensor:
    """Drops columns that hold nothing but padding."""
    return text[:, : int((text != PAD).any(0).sum())]
