"""SASRec (Kang & McAuley 2018, arXiv 1808.09781), trained with the cross-entropy over the whole catalogue.

With that loss instead of binary cross-entropy against one negative it is a strong baseline (Klenitskiy & Vasilev,
RecSys 2023, arXiv 2309.07602).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from models.recommenders.next_item import EncoderConfig, NextItemModel, cross_entropy


class SasRec(NextItemModel):
    """An item's score is the product of its vector, the same that is read, and the state."""

    def __init__(self, config: EncoderConfig, *, items: int) -> None:
        super().__init__(config, items=items)
        self.item = nn.Parameter(torch.empty(items, config.dim))
        nn.init.normal_(self.item, std=0.02)

    def vectors(self, items: torch.Tensor) -> torch.Tensor:
        """Learned freely."""
        return functional.embedding(items, self.item)

    def mean_loss(self, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Cross-entropy over all items."""
        return cross_entropy(hidden, self.item, target)

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of all items."""
        return (hidden @ self.item.T).float()
