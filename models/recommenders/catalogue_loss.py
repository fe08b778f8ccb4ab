"""The softmax over a catalogue that models of whole items are trained by, or over negatives drawn from it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field, PositiveInt
from torch import nn
from torch.nn import functional

from models.common.settings import Settings

POSITIONS = 256  # per block of the loss: their logits stay in the processor's cache


class NegativesConfig(Settings):
    """What the next item is told from in training; what is answered is always of the whole catalogue.

    Attributes:
        negatives: about so many, drawn for each batch of each worker and shared by its positions; null: all items.
        beta: negatives are drawn in proportion to popularity to this power; 0: all items alike.
        log_q: whether logits are corrected for how likely an item is drawn; changes nothing where `beta` is 0.
    """

    negatives: PositiveInt | None = None
    beta: float = Field(0.0, ge=0, le=1)
    log_q: bool = True


class CatalogueLoss(nn.Module):
    """Minus the log-probability of the next item among those that training chooses from.

    An item without an event is not among them: it would be learned as never chosen.

    Negatives are drawn each by itself, with odds of its own, so that none is there twice; a target is told from itself
    and the negatives that are other items. The probability is then that of being the next item, given that the next
    item is one of these. By Bayes' rule every logit, the target's as well, is less by the log of its item's odds: the
    correction of Yi et al. (RecSys 2019), exact for such draws. Where all odds are the same it changes nothing.
    Without it logits learn how much likelier an item is than its odds, which ranks popular items too low.

    Bengio & Senécal (IEEE Trans. Neural Networks 19(4), 2008) estimate the sum over the catalogue instead. There the
    target's own term is exact and is not corrected, and the log of the estimate is biased where negatives are few.
    """

    def __init__(self, counts: torch.Tensor, config: NegativesConfig) -> None:
        """Takes how often training chooses each item, int64 [N]."""
        super().__init__()
        self.negatives = config.negatives
        chosen = counts.nonzero()[:, 0]
        weights = counts[chosen].double() ** config.beta
        odds = (weights * ((config.negatives or 0) / weights.sum())).clamp_max(1.0).float()
        self.chosen: torch.Tensor
        self.place: torch.Tensor  # of an item among the chosen ones
        self.odds: torch.Tensor
        self.correction: torch.Tensor
        place = torch.zeros_like(counts).index_put((chosen,), torch.arange(len(chosen)))
        correction = odds.log() if config.log_q else torch.zeros_like(odds)
        tables = {"chosen": chosen, "place": place, "odds": odds, "correction": correction}
        for name, tensor in tables.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(
        self, hidden: torch.Tensor, target: torch.Tensor, vectors: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Returns the mean loss of states, float32 []; in evaluation mode over all items.

        Args:
            hidden: [P, D]; a logit is the product of a state and an item's vector.
            target: int64 [P], the next items.
            vectors: returns the vectors of items, [n, D] for int64 [n].
        """
        place = self.place[target]
        if self.negatives is None or not self.training:
            return cross_entropy(hidden, vectors(self.chosen), place)
        drawn = (torch.rand_like(self.odds) < self.odds).nonzero()[:, 0]
        column = torch.full_like(self.chosen, len(drawn))  # of an item's logit: one more where it was not drawn
        column[drawn] = torch.arange(len(drawn), device=drawn.device)
        column = column[place]
        own, others = vectors(torch.cat([target, self.chosen[drawn]])).split([len(target), len(drawn)])
        logit = (hidden * own).sum(1) - self.correction[place]
        logit = logit.masked_fill(column < len(drawn), -torch.inf)
        return cross_entropy(hidden, others, column, bias=-self.correction[drawn], logit=logit)


def cross_entropy(
    hidden: torch.Tensor,
    vectors: torch.Tensor,
    target: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    logit: torch.Tensor | None = None,
) -> torch.Tensor:
    """Means cross-entropy, float32 [], of states against vectors; 0 without states.

    Args:
        hidden: [P, D].
        vectors: [N, D].
        target: int64 [P], rows of `vectors`, or N for `logit`.
        bias: of the logits of `vectors`, [N].
        logit: one more of each state, [P].
    """
    loss = (hidden.sum() + vectors.sum()) * 0.0 if not len(hidden) else hidden.new_zeros(())
    rest = hidden.new_empty(len(hidden), 0) if logit is None else logit[:, None]
    for states, items, more in zip(*(part.split(POSITIONS) for part in (hidden, target, rest)), strict=True):
        logits = functional.linear(states, vectors, bias)
        logits = torch.cat([logits, more], dim=1) if more.numel() else logits
        loss = loss + functional.cross_entropy(logits, items, reduction="sum").float()
    return loss / max(len(hidden), 1)
