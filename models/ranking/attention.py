"""Target attention: how much each item of a history has to do with the item in question."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torchrec.modules.mlp import MLP


class TargetAttention(nn.Module):
    """The activation unit of DIN (Zhou et al. 2018, arXiv 1706.06978): an MLP over a target and an item of a history.

    As there, weights are not normalised, so that a history full of what the target is like counts for more than one
    with a single such item.
    """

    def __init__(self, width: int, hidden: Sequence[int] = (32, 16)) -> None:
        super().__init__()
        self.unit = nn.Sequential(MLP(4 * width, list(hidden), activation=nn.PReLU), nn.Linear(hidden[-1], 1))

    def forward(self, target: torch.Tensor, history: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Weights float32 [B, H] of histories [B, H, W] for targets [B, W]; 0 where `mask`, bool [B, H], is false."""
        targets = target.unsqueeze(1).expand_as(history)
        both = torch.cat([targets, history, targets - history, targets * history], dim=2)
        return self.unit(both).squeeze(2).float().masked_fill(~mask, 0.0)
