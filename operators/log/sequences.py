"""What next-item models learn from and are asked: the positives of users, in order of time."""

from __future__ import annotations

import numpy as np
import torch

from models.common.jagged import Jagged, from_arrays
from models.common.recommender import Queries
from operators.log.events import SPLITS, Events, first_interactions, histories


def training_sequences(events: Events, split: np.ndarray) -> Jagged:
    """Returns the positives of training, user by user, oldest first; users without one are left out.

    Args:
        events: of a log.
        split: number of every event, int8 [E].
    """
    chosen = events.take((split == 0) & (events.label > 0))
    order = np.lexsort((chosen.time, chosen.user))
    lengths = np.bincount(chosen.user)
    ends = np.concatenate([[0], np.cumsum(lengths[lengths > 0])])
    return Jagged(torch.from_numpy(chosen.item[order]), torch.from_numpy(ends))


def queries(events: Events, split: np.ndarray, name: str, *, history: int, repeats: bool) -> Queries:
    """Returns the positives of a split as questions, each with what was known strictly before it.

    Args:
        events: of a log.
        split: number of every event, int8 [E].
        name: of the split that is asked about; events of later ones are not known.
        history: positives that are kept.
        repeats: whether items are asked for that the user had met before.
    """
    number = SPLITS.index(name)
    asked = (split == number) & (events.label > 0)
    if not repeats:
        asked &= first_interactions(events)
    targets, known = events.take(asked), events.take(split <= number)
    met = Events(known.user, known.item, known.time, np.ones_like(known.label))
    return Queries(
        targets.user,
        from_arrays(*histories(known, targets.user, targets.time, length=history)),
        torch.from_numpy(targets.item),
        from_arrays(*histories(met, targets.user, targets.time, length=0 if repeats else len(met))),
        targets.time,
    )
