"""What a captioner sees of each item's picture, in several views, for its training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from models.common.encoders import image_encoder
from models.qformer.augment import views
from models.qformer.vision import look
from operators.base import Operator, set_columns
from operators.media.fetch import frame_arrays


@dataclass(frozen=True)
class Look(Operator):
    """The features of views of an item's first frame; NULL without a frame.

    Attributes:
        views: of each picture, the plain one first.
    """

    views: int = 1

    input_columns: ClassVar[tuple[str, ...]] = ("frames",)

    @property
    def output_schema(self) -> pa.Schema:
        """Look: binary, float16 [views, WIDTH] of `models.qformer.vision`."""
        return pa.schema([("look", pa.binary())])

    def setup(self) -> None:
        image_encoder()

    def __call__(self, table: pa.Table) -> pa.Table:
        frames, counts = frame_arrays(table["frames"])
        there = np.flatnonzero(counts)
        first = (np.cumsum(counts) - counts)[there]
        pictures = [view for place in first for view in views(frames[place], self.views)]
        looks: list[bytes | None] = [None] * len(counts)
        if pictures:
            for row, features in zip(there, look(pictures).reshape(len(there), -1), strict=True):
                looks[row] = features.tobytes()
        return set_columns(table, {"look": pa.array(looks, pa.binary())})
