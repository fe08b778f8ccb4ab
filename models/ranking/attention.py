"""Target attention: how much each item of a history has to do with the item in question."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import linear
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
        """Weights float32 [B, H] of histories [B, H, W] for targets [B, W]; 0 where `mask`, bool [B, H], is false.

        One history, [1, H, W] with its mask [1, H], may serve all targets.

        The first layer is linear in [target, history, target - history, target * history]: what it takes from a target
        or a history alone is computed once for each, not for every pair of them.
        """
        first, *others = self.unit[0]._mlp  # type: ignore[misc]
        of_target, of_history, of_difference, of_product = first._linear.weight.chunk(4, dim=1)
        alone = linear(target, of_target + of_difference, first._linear.bias).unsqueeze(1)
        alone = alone + linear(history, of_history - of_difference)
        hidden = first._activation_fn(linear(target.unsqueeze(1) * history, of_product) + alone)
        for layer in others:
            hidden = layer(hidden)
        return self.unit[1](hidden).squeeze(2).float().masked_fill(~mask, 0.0)
