"""What an embedding model is to us: pictures or texts in, one vector of a known width for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from models.chat import Failure
from models.encoders import IMAGE_WIDTH, TEXT_WIDTH, image_encoder, text_encoder
from storage.errors import UserError


class Embeddings(NamedTuple):
    """Vectors of a batch.

    Attributes:
        vectors: float32 [N, width], in the order of the inputs; rows that failed hold zeros.
        failures: why a row has none, by its position.
    """

    vectors: np.ndarray
    failures: dict[int, Failure]


class ImageEmbedder(Protocol):
    """A model of pictures. Implementations are frozen dataclasses whose fields are their settings."""

    @property
    def width(self) -> int:
        """Components of a vector; known before the model is loaded, since the tables' schema needs it."""

    def load(self) -> None:
        """Load weights; once per process, a second call is a no-op.

        Raises:
            UserError: the settings cannot work (no such model, a model that takes no pictures).
        """

    def embed_images(self, pictures: list[np.ndarray]) -> np.ndarray:
        """Embed pictures (uint8 [H, W, 3], any sizes) to float32 [N, width].

        Raises:
            UserError: the model's vectors have another width.
        """


class TextEmbedder(Protocol):
    """A model of texts, or of texts with pictures. Implementations are frozen dataclasses."""

    @property
    def width(self) -> int:
        """Components of a vector; known before the model is loaded, since the tables' schema needs it."""

    def load(self) -> None:
        """Load weights or open the client; once per process, a second call is a no-op.

        Raises:
            UserError: the settings cannot work (no such model, no key in the environment).
        """

    def embed_texts(self, texts: Sequence[str], images: Sequence[np.ndarray | None] | None = None) -> Embeddings:
        """Embed texts, each in one input with its picture where `images` gives one.

        Args:
            texts: empty ones only beside a picture. What is too long for the model is cut at its end.
            images: one uint8 [H, W, 3] or None for each text; None for texts alone.

        Raises:
            UserError: the model's vectors have another width, or it takes no pictures beside texts.
        """


@dataclass(frozen=True)
class LocalImages:
    """EfficientNet-Lite0, whose weights come as a package; see `models.encoders`."""

    width: ClassVar[int] = IMAGE_WIDTH

    def load(self) -> None:
        """Load the network."""
        image_encoder()

    def embed_images(self, pictures: list[np.ndarray]) -> np.ndarray:
        """Embed pictures to float32 [N, 1280]."""
        return image_encoder().encode(pictures)


@dataclass(frozen=True)
class LocalTexts:
    """MiniLM, whose weights come as a package; see `models.encoders`. It reads the first 256 tokens."""

    width: ClassVar[int] = TEXT_WIDTH

    def load(self) -> None:
        """Load the network."""
        text_encoder()

    def embed_texts(self, texts: Sequence[str], images: Sequence[np.ndarray | None] | None = None) -> Embeddings:
        """Embed texts to float32 [N, 384]."""
        if images is not None:
            raise UserError("MiniLM takes no pictures: choose a multimodal model, or set joint to false.")
        return Embeddings(text_encoder().encode(list(texts)), {})
