"""The joint space of pictures and texts that the captioner's contrast made, as embedders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from models.common.rows import encode_rows
from models.common.settings import Backend, Folder
from models.embedding.embedder import Embeddings
from models.qformer.weights import load, loaded, read_config, seen, weights_digest
from storage.errors import UserError


@dataclass(frozen=True)
class _QFormer(Backend):
    """Both of them.

    Attributes:
        weights: as the captioner's.
    """

    weights: Folder

    backend = "qformer"
    place = "gpu"

    @property
    def version(self) -> str:
        """The version of the code and of the weights, wherever they lie."""
        return f"1 {weights_digest(self.weights)}"

    @property
    def width(self) -> int:
        """Components of a vector."""
        return read_config(self.weights).joint

    def check(self) -> None:
        """Finds out whether the weights are there.

        Raises:
            UserError: they are not.
        """
        weights_digest(self.weights)

    def load(self) -> None:
        """Loads the model."""
        load(self.weights)


@dataclass(frozen=True)
class QFormerImages(_QFormer):
    """Pictures in the joint space, of unit length."""

    def embed_images(self, pictures: list[np.ndarray]) -> np.ndarray:
        """Embeds pictures to float32 [N, width]."""
        model = loaded(self.weights)
        with torch.inference_mode():
            rows = [model.picture_vectors(queries)[:count].cpu().numpy() for queries, count in seen(model, pictures)]
        return np.concatenate(rows)


@dataclass(frozen=True)
class QFormerTexts(_QFormer):
    """Texts in the joint space, of unit length; what is longer than the model reads is cut."""

    def embed_texts(self, texts: Sequence[str], images: Sequence[np.ndarray | None] | None = None) -> Embeddings:
        """Embeds texts to float32 [N, width]."""
        if images is not None:
            raise UserError("The captioner's space has texts and pictures apart: set joint to false.")
        model = loaded(self.weights)
        device = next(model.parameters()).device
        tokens = model.encode(texts).to(device)
        vectors = np.zeros((len(texts), model.config.joint), np.float32)
        every = [range(len(texts))]
        return Embeddings(encode_rows(vectors, every, lambda rows: model.text_vectors(tokens[rows]), device=device), {})
