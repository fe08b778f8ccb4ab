"""The ranker of a run with what it reads of users and items: logits of candidates. No ids of strings, no Ray."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from models.common.jagged import Jagged, from_arrays, last
from models.ranking.ranker import load_ranker
from operators.features.long_history import COUNTED, read_prefixes, shared_prefixes
from operators.features.ranker_inputs import read_items
from operators.features.scoring import Scorer
from operators.features.tokens import NULL_ID
from operators.log.events import Events, Known, user_counts
from operators.log.partitions import open_log
from storage import files
from storage.mapped import map_columns
from storage.run import RunDir


class Users(NamedTuple):
    """What recommenders and the ranker have to know of B users.

    Attributes:
        id: hashes, int64 [B]; `NULL_ID` for one whose id the ranker has not learned.
        liked: rows of all items that they liked, oldest first; B lists.
        events: number of their events, int64 [B]; -1 where that is not known.
    """

    id: torch.Tensor
    liked: Jagged
    events: np.ndarray

    @classmethod
    def visitors(cls, liked: Jagged) -> Users:
        """Returns users of whom nothing is known but what they liked."""
        count = len(liked.offsets) - 1
        return cls(torch.full((count,), NULL_ID), liked, np.full(count, -1))


class RunRanker:
    """The ranker of a run, its items pooled once."""

    def __init__(self, run: RunDir) -> None:
        """Loads a run whose stage `rank` is complete.

        Raises:
            UserError: the ranker is missing or damaged, or an artifact lacks items.
        """
        ranker = load_ranker(run.uri("models", "ranker"))
        spec, about = run.read_json("features", "spec.json"), open_log(run).about
        self._config, self._history, self._labels = ranker.config, int(spec["history"]), bool(spec["labels"])
        self._scorer = Scorer(ranker, read_items(run, ranker.config))
        self._log = Known(*(np.array([count]) for count in (about.events, about.positives, about.first)))
        self._prefixes = read_prefixes(run) if ranker.config.long else None
        there = files.dataset(run.uri("features", "items")).schema.names
        self._own = [name in there for name in ranker.config.dense]
        own = [name for name in ranker.config.dense if name in there]
        columns = map_columns(run, "features", "items", columns=own)
        self._items = torch.from_numpy(np.stack([columns[name].to_numpy() for name in own], 1).astype(np.float32))

    def logits(self, users: Users, *, owner: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Returns logits float32 [M] of pairs of a user and an item: positions in `users` and rows, int64 [M]."""
        dense = self.dense(users)[owner]
        dense[:, self._own] = self._items[rows]
        long: Jagged | None = None
        if self._prefixes is not None:
            liked, number = users.liked, len(users.liked.values)
            past = np.repeat(np.arange(len(users.id)), liked.offsets.diff().numpy())
            events = Events(past, liked.values.numpy(), np.arange(number), np.ones(number, np.float32))
            queries = (owner.numpy(), rows.numpy(), np.full(len(rows), number))
            shared = shared_prefixes(events, self._prefixes, *queries, length=self._config.long)
            dense[:, [name.startswith(COUNTED) for name in self._config.dense]] = torch.from_numpy(shared.counts)
            long = from_arrays(shared.items, shared.offsets)
        history = last(users.liked, self._history)
        return self._scorer.logits(user=users.id, history=history, owner=owner, rows=rows, dense=dense, long=long)

    def dense(self, users: Users) -> torch.Tensor:
        """Returns what is known of users as dense features, float32 [B, n], NaN where that is nothing.

        Without labels what a visitor likes is all that they did; with labels it says nothing of what they were shown.
        """
        liked, stored = users.liked.offsets.diff().numpy(), users.events >= 0
        known = Known(np.where(stored, users.events, liked), liked, liked)
        counts = user_counts(known, Known(*(values.repeat(len(liked)) for values in self._log)), rates=self._labels)
        dense = torch.full((len(liked), len(self._config.dense)), torch.nan)
        for name, values in counts.items():
            if name in self._config.dense:
                usable = stored | (not self._labels)
                at = self._config.dense.index(name)
                dense[:, at] = torch.from_numpy(np.where(usable, values, np.nan).astype(np.float32))
        return dense
