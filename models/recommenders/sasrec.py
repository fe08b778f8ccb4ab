"""SASRec (Kang & McAuley 2018, arXiv 1808.09781), as a baseline at full strength.

It differs from the paper in

* the loss: a softmax over the whole catalogue, or over sampled negatives (`models.recommenders.catalogue_loss`), in
  place of binary cross-entropy against one negative: Klenitskiy & Vasilev (RecSys 2023, arXiv 2309.07602) found that
  this is what SASRec had lacked beside BERT4Rec, and eSASRec (arXiv 2508.06450) samples negatives;
* the logits, by default: cosines divided by a temperature that is learned, as CLIP's (Radford et al. 2021). The
  products of states with items' vectors, as in the paper and the baselines above, are `logits: dot`;
* a learned start, from which the first item is predicted, and the blocks (`models.recommenders.encoder`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import model_validator
from torch import nn
from torch.nn import functional

from models.recommenders.catalogue_model import CatalogueConfig, CatalogueModel


class SasRecConfig(CatalogueConfig):
    """Size and loss of SASRec."""

    @model_validator(mode="after")
    def _no_cold_items(self) -> SasRecConfig:
        if self.cold_bonus:
            raise ValueError("SASRec never recommends an item without an event: leave cold_bonus out")
        return self


class SasRec(CatalogueModel):
    """Every item has a vector of its own, the same that is read."""

    kind: ClassVar[str] = "sasrec"
    tables = ("item",)

    def __init__(self, config: SasRecConfig, counts: torch.Tensor) -> None:
        """Takes how often training chooses each item, int64 [N]; the vector of one without an event is and stays 0."""
        super().__init__(config, counts)
        self.item = nn.Parameter(torch.randn(self.items, config.dim) * 0.02 * counts.sign()[:, None])

    @classmethod
    def from_artifact(cls, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> SasRec:
        """Rebuilds a model from its `artifact_config` and its tensors."""
        model = cls(SasRecConfig.model_validate(config["config"]), torch.ones(config["items"], dtype=torch.int64))
        model.load_state_dict(tensors, assign=True)
        return model

    def vectors(self, items: torch.Tensor) -> torch.Tensor:
        """Returns the learned vectors of items, [n, D]."""
        return functional.embedding(items, self.item)

    def every_vector(self) -> torch.Tensor:
        """Returns those of all items, [N, D]."""
        return self.item

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the logits of all items; -inf for those that training has never chosen."""
        return super().scores(hidden).masked_fill_(~self.item.any(1), -torch.inf)
