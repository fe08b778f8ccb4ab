"""The default captioner: ImageNet labels, colours, shape, pattern and light; no language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from models.captioning.captioner import Context
from models.captioning.tagger.describe import describe
from models.chat.base import Failure
from models.common.encoders import IMAGE_WIDTH, image_encoder, imagenet_labels
from models.common.settings import Backend


@dataclass(frozen=True)
class Tagger(Backend):
    """The default captioner: see `models.captioning.tagger.describe`.

    Attributes:
        vector_is_local: True if the context's image vector comes from the default image encoder, so that the labels
            can be taken from it and a picture passes the network once.
    """

    vector_is_local: bool = True

    version: ClassVar[int] = 3
    backend = "tagger"

    @property
    def reads(self) -> tuple[str, ...]:
        """Names the image vector, if labels can be taken from it."""
        return ("image_vector",) if self.vector_is_local else ()

    def load(self) -> None:
        """Loads the image encoder, whose classifier names the labels."""
        image_encoder()

    def caption(self, images: Sequence[np.ndarray], contexts: Sequence[Context]) -> list[str | Failure]:
        """Describes pictures by labels, colours, shape, pattern and light."""
        vectors = np.zeros((len(images), IMAGE_WIDTH), np.float32)
        unseen = []
        for row, context in enumerate(contexts):
            if context.image_vector is None or not self.vector_is_local:
                unseen.append(row)
            else:
                vectors[row] = context.image_vector
        vectors[unseen] = image_encoder().encode([images[row] for row in unseen])
        probabilities = image_encoder().label_probabilities(vectors)
        labels = imagenet_labels()
        return [describe(image, likely, labels) for image, likely in zip(images, probabilities, strict=True)]
