"""DCN-V2: cross layers beside an MLP, the parallel structure (Wang et al. 2021, arXiv 2008.13535)."""

from __future__ import annotations

import torch
from torch import nn
from torchrec.modules.crossnet import CrossNet, LowRankCrossNet
from torchrec.modules.mlp import MLP

from models.ranking.config import Dcnv2


class Tower(nn.Module):
    """From fields and dense features to a logit: cross layers and an MLP side by side, then one linear layer."""

    def __init__(self, config: Dcnv2, *, fields: int, dim: int, dense: int) -> None:
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
