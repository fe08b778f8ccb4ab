"""Turn pictures and texts into vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from models.encoders import IMAGE_WIDTH, TEXT_WIDTH, image_encoder, text_encoder
from operators.base import Operator, set_columns
from operators.media import frame_arrays


def vector_array(vectors: np.ndarray, valid: np.ndarray | None = None) -> pa.FixedSizeListArray:
    """float32 [N, D] as an Arrow column; rows that are not `valid` (bool [N]) become NULL."""
    width = vectors.shape[1]
    values = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    mask = None if valid is None else pa.array(~valid)
    return pa.FixedSizeListArray.from_arrays(values, type=pa.list_(pa.float32(), width), mask=mask)


def vectors_of(column: pa.ChunkedArray | pa.Array, width: int) -> np.ndarray:
    """A vector column without nulls as float32 [N, width]."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.asarray(array.flatten(), dtype=np.float32).reshape(-1, width)


@dataclass(frozen=True)
class EmbedImages(Operator):
    """Mean of an item's frame vectors by EfficientNet-Lite0; NULL without a frame."""

    input_columns: ClassVar[tuple[str, ...]] = ("frames",)

    @property
    def output_schema(self) -> pa.Schema:
        """Image vector: fixed_size_list<float>[1280]."""
        return pa.schema([("image_vector", pa.list_(pa.float32(), IMAGE_WIDTH))])

    def setup(self) -> None:
        image_encoder()

    def __call__(self, table: pa.Table) -> pa.Table:
        pictures, counts = frame_arrays(table["frames"])
        owner = np.repeat(np.arange(len(counts)), counts)
        pooled = np.zeros((len(counts), IMAGE_WIDTH), np.float32)
        np.add.at(pooled, owner, image_encoder().encode(pictures))
        pooled /= np.maximum(counts, 1)[:, None]
        return set_columns(table, {"image_vector": vector_array(pooled, counts > 0)})


@dataclass(frozen=True)
class EmbedTexts(Operator):
    """MiniLM vector of title, caption and description, in this order, so that a long description is what gets cut.

    NULL where all three are missing.
    """

    input_columns: ClassVar[tuple[str, ...]] = ("title", "caption", "description")

    @property
    def output_schema(self) -> pa.Schema:
        """Text vector: fixed_size_list<float>[384]."""
        return pa.schema([("text_vector", pa.list_(pa.float32(), TEXT_WIDTH))])

    def setup(self) -> None:
        text_encoder()

    def __call__(self, table: pa.Table) -> pa.Table:
        parts = zip(*(table[name].to_pylist() for name in self.input_columns), strict=True)
        texts = [". ".join(text.strip() for text in row if text and text.strip()) for row in parts]
        valid = np.array([bool(text) for text in texts], dtype=bool)
        vectors = text_encoder().encode(texts)
        return set_columns(table, {"text_vector": vector_array(vectors, valid)})
