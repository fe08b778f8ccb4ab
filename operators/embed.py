"""Turn pictures and texts into vectors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pyarrow as pa

from models.chat.base import Failure
from models.embedding.embedder import ImageEmbedder, TextEmbedder
from models.embedding.local import LocalImages, LocalTexts
from operators.base import Operator, set_columns, with_failures
from operators.columns import matrix_column
from operators.media.fetch import frame_arrays


@dataclass(frozen=True)
class EmbedImages(Operator):
    """Mean of an item's frame vectors; NULL without a frame.

    Attributes:
        embedder: model of pictures.
    """

    embedder: ImageEmbedder = field(default_factory=LocalImages)

    input_columns: ClassVar[tuple[str, ...]] = ("frames", "issues")
    key_columns: ClassVar[tuple[str, ...]] = ("media_digest",)

    @property
    def output_schema(self) -> pa.Schema:
        """Image vector: fixed_size_list<float>[embedder.width]."""
        return pa.schema([("image_vector", pa.list_(pa.float32(), self.embedder.width))])

    def setup(self) -> None:
        self.embedder.load()

    def __call__(self, table: pa.Table) -> pa.Table:
        pictures, counts = frame_arrays(table["frames"])
        owner = np.repeat(np.arange(len(counts)), counts)
        pooled = np.zeros((len(counts), self.embedder.width), np.float32)
        if pictures:
            np.add.at(pooled, owner, self.embedder.embed_images(pictures))
        pooled /= np.maximum(counts, 1)[:, None]
        return _with_vectors(table, "image_vector", pooled, counts > 0, {})


@dataclass(frozen=True)
class EmbedTexts(Operator):
    """Vector of title, caption, interests and description, in this order, so that a long description is what gets cut.

    NULL where all of them are missing, and where the model fails, which leaves an issue of severity `degraded`.

    Attributes:
        embedder: model of texts.
        joint: give the model the item's first frame in one input with its text, as TriAlignGR does (arXiv 2605.05249,
            CMSA); an item without a text is then its frame alone.
    """

    embedder: TextEmbedder = field(default_factory=LocalTexts)
    joint: bool = False

    version: ClassVar[int] = 2
    text_columns: ClassVar[tuple[str, ...]] = ("title", "caption", "interests", "description")

    @property
    def input_columns(self) -> tuple[str, ...]:  # type: ignore[override]
        """What is read: the frames only where they go along."""
        return (*self.text_columns, *(("frames",) if self.joint else ()), "issues")

    @property
    def key_columns(self) -> tuple[str, ...]:  # type: ignore[override]
        """What decides the vector: the pixels only where they go along."""
        return (*self.text_columns, *(("media_digest",) if self.joint else ()))

    @property
    def output_schema(self) -> pa.Schema:
        """Text vector: fixed_size_list<float>[embedder.width]."""
        return pa.schema([("text_vector", pa.list_(pa.float32(), self.embedder.width))])

    def setup(self) -> None:
        self.embedder.load()

    def __call__(self, table: pa.Table) -> pa.Table:
        titles, captions, interests, descriptions = (table[name].to_pylist() for name in self.text_columns)
        tags = [", ".join(row or ()) for row in interests]
        parts = zip(titles, captions, tags, descriptions, strict=True)
        texts = [". ".join(text.strip() for text in row if text and text.strip()) for row in parts]
        images = _first_frames(table["frames"]) if self.joint else [None] * len(texts)
        present = [bool(text) or image is not None for text, image in zip(texts, images, strict=True)]
        valid = np.array(present, bool)
        rows = np.flatnonzero(valid)
        vectors = np.zeros((len(texts), self.embedder.width), np.float32)
        failures = {}
        if len(rows):
            beside = [images[row] for row in rows] if self.joint else None
            found = self.embedder.embed_texts([texts[row] for row in rows], beside)
            vectors[rows] = found.vectors
            failures = {int(rows[at]): failure for at, failure in found.failures.items()}
        return _with_vectors(table, "text_vector", vectors, valid, failures)


def _first_frames(frames: pa.ChunkedArray) -> list[np.ndarray | None]:
    pictures, counts = frame_arrays(frames)
    first = np.cumsum(counts) - counts
    return [pictures[start] if count else None for start, count in zip(first, counts, strict=True)]


def _with_vectors(
    table: pa.Table, name: str, vectors: np.ndarray, valid: np.ndarray, failures: dict[int, Failure]
) -> pa.Table:
    """Sets a vector column: NULL where not `valid`, and NULL with a degraded issue where the model failed."""
    for row in np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist():
        failures[row] = Failure("vector_not_finite", f"the {name} of the model has NaN or infinite components")
    failed = np.isin(np.arange(len(vectors)), list(failures))
    columns = {name: matrix_column(np.where(failed[:, None], 0, vectors), valid & ~failed)}
    if failures:
        columns["issues"] = with_failures(table["issues"], {row: [failure] for row, failure in failures.items()})
    return set_columns(table, columns)
