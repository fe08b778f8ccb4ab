"""The whole captioner: its modules, what it answers, and its artifact."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F  # noqa: N812 - the usual name
from tokenizers import Tokenizer
from torch import Tensor, nn

from models.common import scale
from models.qformer import tokens
from models.qformer.decoder import Decoder
from models.qformer.qformer import QFormer
from models.qformer.settings import Architecture
from storage import files
from storage.artifacts import load_one_of, rebuilding, save_model

KIND, WHAT = "qformer", "captioner"


class CaptionModel(nn.Module):
    """A Q-Former, its heads, and a decoder.

    Attributes:
        config: sizes.
        tokenizer: of the Q-Former's texts, and of the tiny decoder's.
    """

    def __init__(self, config: Architecture, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.qformer = QFormer(config)
        self.of_picture, self.of_text = (nn.Linear(config.dim, config.joint) for _ in range(2))
        self.matches = nn.Linear(config.dim, 1)
        self.log_scale = scale.log_scale()
        self.decoder = Decoder(config, tokenizer)

    @property
    def scale(self) -> Tensor:
        """What similarities are multiplied by."""
        return self.log_scale.exp()

    def limit(self) -> None:
        """Keeps the scale within its bound; called after every step."""
        scale.limit(self.log_scale)

    def see(self, features: Tensor) -> Tensor:
        """Returns the queries' outputs, [N, queries, dim], of features [N, WIDTH]."""
        return self.qformer.see(self.qformer.sight(features.float()))

    def picture_vectors(self, queries: Tensor) -> Tensor:
        """Returns pictures in the joint space, [N, joint], of unit length, from the queries' outputs."""
        return F.normalize(self.of_picture(queries.mean(1)), dim=-1)

    def text_vectors(self, text: Tensor) -> Tensor:
        """Returns texts in the joint space, [N, joint], of unit length, from their tokens, int64 [N, T]."""
        return F.normalize(self.of_text(self.qformer.read(F.pad(text, (1, 0), value=tokens.CLS))[:, 0]), dim=-1)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Returns the Q-Former's tokens of texts, int64 [N, T]."""
        return tokens.encode(self.tokenizer, texts, self.config.text_tokens)

    def own_state(self) -> dict[str, Tensor]:
        """Returns the tensors that an artifact holds: neither a frozen decoder's nor those that are tied to others."""
        tied = tuple(f"decoder.model.{name}" for name in self.decoder.model.all_tied_weights_keys)
        left_out = ("decoder.model.",) if self.decoder.frozen else tied
        return {name: value for name, value in self.state_dict().items() if not name.startswith(left_out)}

    def load_own_state(self, tensors: dict[str, Tensor]) -> None:
        """Loads what `own_state` returned, of any precision.

        Raises:
            ValueError: a tensor is missing or foreign.
        """
        wanted = set(self.own_state())
        if wanted != set(tensors):
            raise ValueError(f"lacks or has besides: {', '.join(sorted(wanted ^ set(tensors))[:3])}")
        self.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=False)

    def save(self, uri: str) -> None:
        """Writes the artifact, in half precision."""
        files.write_bytes(files.join(uri, "tokenizer.json"), self.tokenizer.to_str().encode())
        half = {name: value.half() for name, value in self.own_state().items()}
        save_model(uri, KIND, self.config.model_dump(mode="json"), half)


def configured(uri: str) -> Architecture:
    """Returns the sizes of an artifact without its weights.

    Raises:
        ArtifactError: there is none, it is damaged, or it is of another kind.
    """
    with rebuilding(uri, WHAT):
        config = files.read_json(files.join(uri, "config.json"))
        if config.pop("kind", None) != KIND:
            raise ValueError("of another kind")
        return Architecture.model_validate(config)


def load_captioner(uri: str) -> CaptionModel:
    """Reads an artifact, in evaluation mode, float32.

    Raises:
        ArtifactError: there is none, it is damaged, or it is of another kind.
        UserError: its decoder is not there.
    """
    _, config, tensors = load_one_of(uri, (KIND,), WHAT)
    with rebuilding(uri, WHAT):
        tokenizer = tokens.read_tokenizer(files.read_bytes(files.join(uri, "tokenizer.json")))
        model = CaptionModel(Architecture.model_validate(config), tokenizer)
        model.load_own_state(tensors)
    return model.eval()
