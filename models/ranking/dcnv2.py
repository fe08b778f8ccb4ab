"""DCN-V2: cross layers beside an MLP, the parallel structure (Wang et al. 2021, arXiv 2008.13535)."""

from __future__ import annotations

import torch
from torch import nn
from torchrec.modules.mlp import MLP

from models.ranking.config import Dcnv2


class Cross(nn.Module):
    """x_{l+1} = x_0 * (W_l x_l + b_l) + x_l (eq. 1), with W_l = U V of rank r where `rank` is set (section 4.2).

    TorchRec's CrossNet is the same, but adds a bias apart from the product, whose fp32 makes all that follows fp32.
    """

    def __init__(self, width: int, layers: int, rank: int | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(width, width)
            if rank is None
            else nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
            for _ in range(layers)
        )

    def forward(self, first: torch.Tensor) -> torch.Tensor:
        """From [B, width] to [B, width]."""
        x = first
        for layer in self.layers:
            x = torch.addcmul(x, first, layer(x))
        return x


class Tower(nn.Module):
    """From fields and dense features to a logit: cross layers and an MLP side by side, then one linear layer."""

    def __init__(self, config: Dcnv2, *, fields: int, dim: int, dense: int) -> None:
        super().__init__()
        width = fields * dim + dense
        self.cross = Cross(width, config.cross_layers, config.cross_rank)
        self.deep = MLP(width, list(config.hidden))
        self.head = nn.Linear(width + config.hidden[-1], 1, bias=False)

    def forward(self, fields: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        """Logits float32 [1, B], without a constant, of fields [B, F, D] and standardised dense features [B, n]."""
        x = torch.cat([fields.flatten(1), dense], dim=1)
        return self.head(torch.cat([self.cross(x), self.deep(x)], dim=1)).float().t()
