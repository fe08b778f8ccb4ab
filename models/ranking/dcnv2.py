"""DCN-V2: cross layers beside an MLP, the parallel structure (Wang et al. 2021, arXiv 2008.13535)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import nn
from torchrec.modules.crossnet import CrossNet, LowRankCrossNet
from torchrec.modules.mlp import MLP


class Config(BaseModel):
    """Settings of DCN-V2.

    Attributes:
        cross_layers: products with the input, each of one degree more.
        cross_rank: rank of their matrices; null: full.
        hidden: widths of the MLP's layers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["dcnv2"] = "dcnv2"
    cross_layers: PositiveInt = 3
    cross_rank: PositiveInt | None = None
    hidden: tuple[PositiveInt, ...] = Field((256, 128), min_length=1)


class Tower(nn.Module):
    """From fields and dense features to a logit: cross layers and an MLP side by side, then one linear layer."""

    def __init__(self, config: Config, *, fields: int, dim: int, dense: int) -> None:
        super().__init__()
        width = fields * dim + dense
        self.cross = (
            CrossNet(width, config.cross_layers)
            if config.cross_rank is None
            else LowRankCrossNet(width, config.cross_layers, config.cross_rank)
        )
        self.deep = MLP(width, list(config.hidden))
        self.head = nn.Linear(width + config.hidden[-1], 1, bias=False)

    def forward(self, fields: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        """Logits float32 [1, B], without a constant, of fields [B, F, D] and standardised dense features [B, n]."""
        x = torch.cat([fields.flatten(1), dense], dim=1)
        return self.head(torch.cat([self.cross(x), self.deep(x)], dim=1)).float().t()
