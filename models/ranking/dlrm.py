"""DLRM: dot products of all pairs of fields under an MLP (Naumov et al. 2019, arXiv 1906.00091)."""

from __future__ import annotations

import torch
from torch import nn
from torchrec.modules.mlp import MLP

from models.ranking.config import Dlrm


class Tower(nn.Module):
    """From fields and dense features to a logit.

    The dense features become one vector of the fields' width, which joins the fields; the dot products of all pairs
    and the vectors themselves pass an MLP. DLRM proper gives the MLP the dense vector alone: a dot product cannot say
    what one field says by itself, such as how popular an item is.
    """

    def __init__(self, config: Dlrm, *, fields: int, dim: int, dense: int) -> None:
        super().__init__()
        self.bottom = MLP(dense, [*config.bottom, dim]) if dense else None
        vectors = fields + bool(dense)
        first, second = torch.triu_indices(vectors, vectors, offset=1)
        self.pairs = nn.Buffer(first * vectors + second, persistent=False)
        self.top = MLP(vectors * dim + len(self.pairs), list(config.hidden))
        self.head = nn.Linear(config.hidden[-1], 1, bias=False)

    def forward(self, fields: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        """Logits float32 [1, B], without a constant, of fields [B, F, D] and standardised dense features [B, n]."""
        if self.bottom is not None:
            fields = torch.cat([fields, self.bottom(dense).unsqueeze(1)], dim=1)
        dots = torch.bmm(fields, fields.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        return self.head(self.top(torch.cat([fields.flatten(1), dots], dim=1))).float().t()
