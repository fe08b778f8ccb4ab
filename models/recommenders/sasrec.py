"""SASRec (Kang & McAuley 2018, arXiv 1808.09781), trained with the cross-entropy over the whole catalogue.

With that loss instead of binary cross-entropy against one negative it is a strong baseline (Klenitskiy & Vasilev,
RecSys 2023, arXiv 2309.07602).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from models.recommenders.next_item import EncoderConfig, NextItemModel, cross_entropy


class SasRec(NextItemModel):
    """An item's score is the product of its vector, the same that is read, and the state."""

    kind: ClassVar[str] = "sasrec"

    def __init__(self, config: EncoderConfig, *, items: int) -> None:
        super().__init__(config, items=items)
        self.item = nn.Parameter(torch.empty(items, config.dim))
        nn.init.normal_(self.item, std=0.02)

    @classmethod
    def from_artifact(cls, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> SasRec:
        """Rebuilds a model from its `artifact_config` and its tensors."""
        model = cls(EncoderConfig.model_validate(config["config"]), items=config["items"])
        model.load_state_dict(tensors, assign=True)
        return model

    def vectors(self, items: torch.Tensor) -> torch.Tensor:
        """Returns the learned vectors of items."""
        return functional.embedding(items, self.item)

    def mean_loss(self, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the cross-entropy over all items."""
        return cross_entropy(hidden, self.item, target)

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the logits of all items."""
        return (hidden @ self.item.T).float()
