"""Embedding bags in 8 or 16 bits, for serving on CPUs.

As int8, a row is one byte per number, round((x - least) / step), with step = (greatest - least) / 255: no number is off
by more than half a step. What weighs the values of bags is float16 either way.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from models.ranking.bags import EmbeddingBags, TokenWeights
from models.ranking.config import Table

Bits = Literal["int8", "fp16"]


class QuantizedBags(nn.Module):
    """What `EmbeddingBags` computes, for inference alone.

    Made empty: its tensors come from `quantize_bags`, or from the state dict of what that made, with `assign=True`.
    There `tables.NAME` is uint8 [rows, dim + 8], the last eight bytes of a row its step and least number as float32, or
    float16 [rows, dim]; `weights.…` is float16.
    """

    def __init__(self, tables: dict[str, Table], dim: int, dtype: Bits) -> None:
        super().__init__()
        self.features = tuple(feature for table in tables.values() for feature in table.features)
        self._tables = {feature: (name, table) for name, table in tables.items() for feature in table.features}
        width, stored = (dim + 8, torch.uint8) if dtype == "int8" else (dim, torch.float16)
        self.tables = nn.ParameterDict(
            {
                name: nn.Parameter(torch.empty(table.rows, width, dtype=stored, device="meta"), requires_grad=False)
                for name, table in tables.items()
            }
        )
        weighted = {name: table for name, table in tables.items() if table.weighted}
        self.weights = TokenWeights(weighted).half().requires_grad_(False) if weighted else None

    def forward(self, sparse: KeyedJaggedTensor | None, weighted: KeyedJaggedTensor | None) -> torch.Tensor:
        """Embeddings float32 [B, F, dim], as of `EmbeddingBags.forward`."""
        bags = {} if sparse is None else sparse.to_dict()
        divisors: dict[str, torch.Tensor] = {}
        if self.weights is not None and weighted is not None:
            bags = bags | self.weights(weighted).to_dict()
            divisors = self.weights.divisors(weighted)
        return torch.stack(
            [self._pooled(feature, bags[feature], divisors.get(feature)) for feature in self.features], 1
        )

    def _pooled(self, feature: str, bags: JaggedTensor, divisor: torch.Tensor | None) -> torch.Tensor:
        name, table = self._tables[feature]
        rows, stored = bags.values(), self.tables[name]
        weights, offsets = bags.weights_or_none(), bags.offsets()
        if stored.dtype == torch.uint8:
            sums = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
                stored, rows, offsets, per_sample_weights=weights, include_last_offset=True
            )
        else:
            if weights is not None and divisor is not None:  # as they are, float16 could not hold them
                weights, divisor = weights / divisor.repeat_interleave(bags.lengths().long()), None
            weights = None if weights is None else weights.half()
            sums = nn.functional.embedding_bag(
                rows, stored, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
            ).float()
        if not table.weighted and table.pooling == "mean":
            divisor = bags.lengths().clamp_min(1)
        return sums if divisor is None else sums / divisor.unsqueeze(1)


def quantize_bags(bags: EmbeddingBags, dtype: Bits) -> QuantizedBags:
    """Returns the same bags in fewer bits; `bags` are on the CPU and not sharded."""
    state = {}
    for part in bags.modules():
        if isinstance(part, EmbeddingBagCollection):
            for name, table in part.embedding_bags.items():
                rows = table.weight.detach()
                packed = torch.ops.quantized.embedding_bag_byte_prepack(rows) if dtype == "int8" else rows.half()
                state[f"tables.{name}"] = packed
        if isinstance(part, TokenWeights):
            state |= {f"weights.{name}": values.half() for name, values in part.state_dict().items()}
    quantized = QuantizedBags(bags.tables, bags.dim, dtype)
    quantized.load_state_dict(state, assign=True)
    return quantized


def float_bags(bags: QuantizedBags, tables: dict[str, Table], dim: int) -> EmbeddingBags:
    """Returns the bags of these tables in 32 bits, for training to go on with."""
    found = EmbeddingBags(tables, dim)
    for part in found.modules():
        if isinstance(part, EmbeddingBagCollection):
            for name, table in part.embedding_bags.items():
                rows = bags.tables[name].detach()
                unpacked = torch.ops.quantized.embedding_bag_byte_unpack(rows) if rows.dtype == torch.uint8 else rows
                table.weight = nn.Parameter(unpacked.float())
        if isinstance(part, TokenWeights) and bags.weights is not None:
            part.load_state_dict({name: value.float() for name, value in bags.weights.state_dict().items()})
    return found
