"""The default embedders, whose weights come as packages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from models.common.encoders import IMAGE_WIDTH, TEXT_WIDTH, image_encoder, text_encoder
from models.common.settings import Backend
from models.embedding.embedder import Embeddings
from storage.errors import UserError


@dataclass(frozen=True)
class LocalImages(Backend):
    """EfficientNet-Lite0, whose weights come as a package; see `models.common.encoders`."""

    width: ClassVar[int] = IMAGE_WIDTH
    backend = "local"
    place = "gpu"

    def load(self) -> None:
        """Loads the network."""
        image_encoder()

    def embed_images(self, pictures: list[np.ndarray]) -> np.ndarray:
        """Embeds pictures to float32 [N, 1280]."""
        return image_encoder().encode(pictures)


@dataclass(frozen=True)
class LocalTexts(Backend):
    """MiniLM, whose weights come as a package; see `models.common.encoders`. It reads the first 256 tokens."""

    width: ClassVar[int] = TEXT_WIDTH
    backend = "local"
    place = "gpu"

    def load(self) -> None:
        """Loads the network."""
        text_encoder()

    def embed_texts(self, texts: Sequence[str], images: Sequence[np.ndarray | None] | None = None) -> Embeddings:
        """Embeds texts to float32 [N, 384]."""
        if images is not None:
            raise UserError("MiniLM takes no pictures: choose a multimodal model, or set joint to false.")
        return Embeddings(text_encoder().encode(list(texts)), {})
