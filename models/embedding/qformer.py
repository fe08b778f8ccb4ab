"""The joint space of pictures and texts that the captioner's contrast made, as embedders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from models.common.rows import encode_rows
from models.embedding.embedder import Embeddings
from models.qformer.weights import QFormerBackend, loaded, read_config, seen
from storage.errors import UserError


class _Embedder(QFormerBackend):
    """Both of them."""

    @property
    def width(self) -> int:
        """Components of a vector."""
        return read_config(self.weights).joint


@dataclass(frozen=True)
class QFormerImages(_Embedder):
    """Pictures in the joint space, of unit length."""

    def embed_images(self, pictures: list[np.ndarray]) -> np.ndarray:
        """Embeds pictures to float32 [N, width]."""
        model = loaded(self.weights)
        with torch.inference_mode():
            rows = [model.picture_vectors(queries)[:count].cpu().numpy() for queries, count in seen(model, pictures)]
        return np.concatenate(rows)


@dataclass(frozen=True)
class QFormerTexts(_Embedder):
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
