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

import math
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from models.recommenders.catalogue_loss import CatalogueLoss, NegativesConfig
from models.recommenders.next_item import EncoderConfig, NextItemModel

FIRST_SCALE, LAST_SCALE = 1 / 0.07, 100.0  # of cosines: CLIP's


class SasRecConfig(EncoderConfig, NegativesConfig):
    """Size and loss of SASRec.

    Attributes:
        logits: `cosine`: of the state and an item's vector, times a learned scale; `dot`: their product.
    """

    logits: Literal["cosine", "dot"] = "cosine"


class SasRec(NextItemModel):
    """An item's score is the cosine, or the product, of the state and the item's vector, the same that is read."""

    kind: ClassVar[str] = "sasrec"

    def __init__(self, config: SasRecConfig, counts: torch.Tensor) -> None:
        """Takes how often training chooses each item, int64 [N]; the vector of one without an event is and stays 0."""
        super().__init__(config, items=len(counts), counts=counts)
        self.cosine = config.logits == "cosine"
        self.catalogue_loss = CatalogueLoss(counts, config)
        self.item = nn.Parameter(torch.randn(self.items, config.dim) * 0.02 * counts.sign()[:, None])
        if self.cosine:
            self.log_scale = nn.Parameter(torch.tensor([FIRST_SCALE]).log())  # a vector, as FSDP shares no scalars out

    @classmethod
    def from_artifact(cls, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> SasRec:
        """Rebuilds a model from its `artifact_config` and its tensors."""
        model = cls(SasRecConfig.model_validate(config["config"]), torch.ones(config["items"], dtype=torch.int64))
        model.load_state_dict(tensors, assign=True)
        return model

    def limit(self) -> None:
        """Keeps the scale of cosines within its bound."""
        if self.cosine:
            self.log_scale.data.clamp_(max=math.log(LAST_SCALE))

    def vectors(self, items: torch.Tensor) -> torch.Tensor:
        """Returns the learned vectors of items."""
        return functional.embedding(items, self.item)

    def mean_loss(self, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the cross-entropy over the items that training chooses from, or over negatives."""
        return self.catalogue_loss(self._asked(hidden), target, lambda items: self._compared(self.vectors(items)))

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the logits of all items; -inf for those that training has never chosen."""
        logits = (self._asked(hidden) @ self._compared(self.item).T).float()
        return logits.masked_fill_(~self.item.any(1), -torch.inf)

    def _asked(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.normalize(hidden, dim=-1) * self.log_scale.exp() if self.cosine else hidden

    def _compared(self, vectors: torch.Tensor) -> torch.Tensor:
        return functional.normalize(vectors, dim=-1) if self.cosine else vectors
