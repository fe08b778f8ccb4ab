"""What SASRec and product codes share: an item is compared with a state as one vector, among other items."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.nn import functional

from models.common import scale
from models.recommenders.catalogue_loss import CatalogueLoss, NegativesConfig
from models.recommenders.next_item import EncoderConfig, NextItemModel
from models.recommenders.sprint import ProductPenalty, SprintConfig


class CatalogueConfig(EncoderConfig, NegativesConfig):
    """Size and loss.

    Attributes:
        logits: `cosine`: of the state and an item's vector, times a learned scale; `dot`: their product.
        sprint: what is pushed down beside the loss, against the popularity that deep encoders add.
    """

    logits: Literal["cosine", "dot"] = "cosine"
    sprint: SprintConfig = SprintConfig()


class CatalogueModel(NextItemModel):
    """An item's score is the cosine, or the product, of the state and the item's vector."""

    def __init__(self, config: CatalogueConfig, counts: torch.Tensor) -> None:
        """Takes how often training chooses each item, int64 [N]."""
        super().__init__(config, items=len(counts), counts=counts, sprint=config.sprint)
        self.cosine = config.logits == "cosine"
        self.catalogue_loss = CatalogueLoss(counts, config)
        embedding = config.sprint.embedding
        self.table_penalty = ProductPenalty(embedding, config.dim) if embedding else None
        self._made: tuple[Any, Any] | None = None  # what is answered in, behind what made it
        if self.cosine:
            self.log_scale = scale.log_scale(1)

    @abstractmethod
    def vectors(self, items: torch.Tensor) -> torch.Tensor:
        """Returns the vectors of items, [n, D] for int64 [n]."""

    @abstractmethod
    def every_vector(self) -> torch.Tensor:
        """Returns those of all items, [N, D]."""

    def inputs(self, items: torch.Tensor) -> torch.Tensor:
        """Returns their vectors: what is read is what is compared."""
        return self.vectors(items)

    def limit(self) -> None:
        """Keeps the scale of cosines within its bound."""
        if self.cosine:
            scale.limit(self.log_scale)

    def train(self, mode: bool = True) -> CatalogueModel:
        """Sets the mode, and forgets what was made of the weights as they were."""
        self._made = None
        return super().train(mode)

    def mean_loss(self, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the cross-entropy over the items that training chooses from, or over negatives; and a penalty."""

        def read(items: torch.Tensor) -> torch.Tensor:
            few = self.catalogue_loss.negatives
            return self._compared(self.vectors(items) if few else functional.embedding(items, self.every_vector()))

        loss: torch.Tensor = self.catalogue_loss(self._query(hidden), target, read)
        if self.training and self.table_penalty is not None:
            loss = loss + self.table_penalty(self._compared(self.every_vector())) * bool(len(target))
        return loss

    @torch.no_grad()
    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the logits of all items."""
        return (self._query(hidden) @ self._answering(torch.t)).float()

    def _answering(self, make: Callable[[torch.Tensor], Any]) -> Any:
        """Returns what answers are found in, made of all items' vectors once for the weights as they are.

        What `make` has made last is kept, and made anew for another one.
        """
        if self.training or self._made is None or self._made[0] is not make:
            self._made = make, make(self._compared(self.every_vector()).detach())
        return self._made[1]

    def _query(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.normalize(hidden, dim=-1) * self.log_scale.exp() if self.cosine else hidden

    def _compared(self, vectors: torch.Tensor) -> torch.Tensor:
        return functional.normalize(vectors, dim=-1) if self.cosine else vectors
