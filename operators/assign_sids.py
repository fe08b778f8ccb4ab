"""Embeddings to the codes of their semantic IDs, with the catalogue's frozen quantizer."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import torch

from models.semantic_ids.quantizer import Quantizer
from operators.base import Operator, set_columns
from operators.columns import matrix_column, matrix_of


@functools.cache
def load_quantizer(uri: str) -> Quantizer:
    """Returns the quantizer at a URI, loaded once per process."""
    return Quantizer.load(uri)


@dataclass(frozen=True)
class AssignSids(Operator):
    """Embedding to codes, one per level; the deduplication suffix is given where all items are known.

    Attributes:
        artifact: URI of `models/quantizer`.
    """

    artifact: str

    input_columns: ClassVar[tuple[str, ...]] = ("embedding",)

    @property
    def output_schema(self) -> pa.Schema:
        """Codes: fixed_size_list<int32>[L]."""
        levels = len(load_quantizer(self.artifact).architecture.codebook_sizes)
        return pa.schema([("codes", pa.list_(pa.int32(), levels))])

    def setup(self) -> None:
        load_quantizer(self.artifact)

    def __call__(self, table: pa.Table) -> pa.Table:
        codes = load_quantizer(self.artifact).encode(torch.tensor(matrix_of(table["embedding"])))
        return set_columns(table, {"codes": matrix_column(codes.numpy())})
