"""Raw vectors to embeddings, with the catalogue's frozen projection."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from models.embedding.projector import Blocks, Projector
from operators.base import Operator, set_columns
from operators.columns import filled_matrix, matrix_column

BLOCKS = ("image_vector", "text_vector")


def blocks_of(table: pa.Table | pa.RecordBatch) -> list[Blocks]:
    """Returns the raw vectors of a table as blocks of a projector, nulls marked."""
    return [filled_matrix(table[name]) for name in BLOCKS]


@dataclass(frozen=True)
class Project(Operator):
    """Image and text vectors to the embedding of DESIGN's `project` stage.

    Attributes:
        artifact: URI of `models/projector`.
    """

    artifact: str

    version: ClassVar[int] = 2
    input_columns: ClassVar[tuple[str, ...]] = BLOCKS

    @property
    def output_schema(self) -> pa.Schema:
        """Embedding: fixed_size_list<float>[width]."""
        return pa.schema([("embedding", pa.list_(pa.float32(), self._projector.components.shape[1]))])

    def setup(self) -> None:
        _ = self._projector

    @functools.cached_property
    def _projector(self) -> Projector:
        return Projector.load(self.artifact)

    def __call__(self, table: pa.Table) -> pa.Table:
        return set_columns(table, {"embedding": matrix_column(self._projector.transform(blocks_of(table)))})
