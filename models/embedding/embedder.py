"""The interface of embedding models: pictures or texts in, one vector of a known width for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from models.chat.base import Failure


class Embeddings(NamedTuple):
    """Vectors of a batch.

    Attributes:
        vectors: float32 [N, width], in the order of the inputs; rows that failed hold zeros.
        failures: why a row has none, by its position.
    """

    vectors: np.ndarray
    failures: dict[int, Failure]


class Embedder(Protocol):
    """What both kinds of models have. Implementations are backends; see `models.common.settings.Backend`."""

    @property
    def width(self) -> int:
        """Components of a vector; known before the model is loaded, since the tables' schema needs it."""

    def load(self) -> None:
        """Loads weights or open the client; once per process, a second call is a no-op.

        Raises:
            UserError: the settings cannot work (no such model, a model that takes no pictures, no key in the
                environment).
        """


class ImageEmbedder(Embedder, Protocol):
    """A model of pictures."""

    def embed_images(self, pictures: list[np.ndarray]) -> np.ndarray:
        """Embeds pictures (uint8 [H, W, 3], any sizes) to float32 [N, width].

        Raises:
            UserError: the model's vectors have another width.
        """


class TextEmbedder(Embedder, Protocol):
    """A model of texts, or of texts with pictures."""

    def embed_texts(self, texts: Sequence[str], images: Sequence[np.ndarray | None] | None = None) -> Embeddings:
        """Embeds texts, each in one input with its picture where `images` gives one.

        Args:
            texts: empty ones only beside a picture. What is too long for the model is cut at its end.
            images: one uint8 [H, W, 3] or None for each text; None for texts alone.

        Raises:
            UserError: the model's vectors have another width, or it takes no pictures beside texts.
        """
