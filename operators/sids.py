"""Embeddings to the codes of their semantic IDs, with the catalogue's frozen quantizer."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch

from models.quantizer import Quantizer
from operators.base import Operator, set_columns


@functools.cache
def load_quantizer(uri: str) -> Quantizer:
    """The quantizer at a URI, loaded once per process."""
    return Quantizer.load(uri)


def embedding_matrix(table: pa.Table) -> torch.Tensor:
    """The column `embedding` as float32 [N, D]."""
    column = table["embedding"].combine_chunks()
    values = np.array(column.flatten(), dtype=np.float32)
    return torch.from_numpy(values.reshape(len(column), column.type.list_size))


def codes_array(codes: np.ndarray) -> pa.FixedSizeListArray:
    """Codes, integers [N, L], as fixed_size_list<int32>[L]."""
    return pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1), pa.int32()), codes.shape[1])


@dataclass(frozen=True)
class AssignSids(Operator):
    """Embedding to codes, one per level; the deduplication digit is given where all items are known.

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
        codes = load_quantizer(self.artifact).encode(embedding_matrix(table))
        return set_columns(table, {"codes": codes_array(codes.numpy())})
