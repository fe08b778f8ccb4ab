"""Describe pictures in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from models.encoders import IMAGE_WIDTH, image_encoder, imagenet_labels
from models.tagger import describe
from operators.base import Operator, set_columns
from operators.embed import vectors_of
from operators.media import frame_arrays


@dataclass(frozen=True)
class TagCaption(Operator):
    """The default captioner: see `models.tagger`.

    It judges the first frame of an item, and takes the labels from the image vector that is there already, so a picture
    passes the network once. Items without a picture get a NULL caption.
    """

    input_columns: ClassVar[tuple[str, ...]] = ("frames", "image_vector")

    @property
    def output_schema(self) -> pa.Schema:
        """Caption: string."""
        return pa.schema([("caption", pa.string())])

    def setup(self) -> None:
        image_encoder()

    def __call__(self, table: pa.Table) -> pa.Table:
        pictures, counts = frame_arrays(table["frames"])
        first = np.cumsum(counts) - counts
        known = table["image_vector"].is_valid().to_numpy(zero_copy_only=False)
        vectors = vectors_of(table["image_vector"].drop_null(), IMAGE_WIDTH)
        probabilities = iter(image_encoder().label_probabilities(vectors))
        labels = imagenet_labels()
        captions = [
            describe(pictures[start], next(probabilities), labels) if has else None
            for start, has in zip(first, known, strict=True)
        ]
        return set_columns(table, {"caption": pa.array(captions, pa.string())})
