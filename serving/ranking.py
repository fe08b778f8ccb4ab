"""The ranker of a run with what it reads of users and items: logits of candidates. No ids of strings, no Ray."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from models.common.growing import Growing
from models.common.jagged import Jagged, from_arrays, last, shared
from models.ranking.ranker import load_ranker
from operators.assign_sids import load_quantizer
from operators.features.items import as_trained, item_features
from operators.features.long_history import COUNTED, prefixes_from, read_prefixes, shared_prefixes
from operators.features.ranker_inputs import ItemFeatures, read_items, token_rows
from operators.features.scoring import Scorer
from operators.features.tokens import NULL_ID, Tokens
from operators.log.counters import in_all
from operators.log.events import Events, Known, item_counts, user_counts
from operators.log.partitions import open_log
from operators.log.sequences import Training
from storage import files
from storage.hashing import hash_ids
from storage.manifest import require_manifest
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


def trained_by(run: RunDir) -> int:
    """Returns the number of what a run's ranker was trained on, by which stores know whose ids it has learned."""
    entry = require_manifest(run.root).stages.get("features")
    return int(hash_ids([entry.fingerprint if entry is not None else ""])[0])


class RunRanker:
    """The ranker of a run, its items pooled once."""

    def __init__(self, run: RunDir, training: Training | None = None) -> None:
        """Loads a run whose stage `rank` is complete; counts of the log are of training alone where that is given.

        Raises:
            UserError: the ranker is missing or damaged, or an artifact lacks items.
        """
        ranker = load_ranker(run.uri("models", "ranker"))
        spec, about = run.read_json("features", "spec.json"), open_log(run).about
        self._config, self._history, self._labels = ranker.config, int(spec["history"]), bool(spec["labels"])
        items = read_items(run, ranker.config)
        self._run, self._tokens, self._nothing = run, Tokens(**spec["tokens"]), len(items)
        self._scorer, self._posted = Scorer(ranker, items), list[tuple[pa.Table, torch.Tensor, torch.Tensor]]()
        self._log = Known(*(np.array([count]) for count in (about.events, about.positives, about.first)))
        self._prefixes = Growing(shared(read_prefixes(run))) if ranker.config.long else None
        there = files.dataset(run.uri("features", "items")).schema.names
        self._own = [name in there for name in ranker.config.dense]
        self._counted = [name for name in ranker.config.dense if name in there]
        if training is None:
            columns: Mapping[str, Any] | pa.Table = map_columns(run, "features", "items", columns=self._counted)
        else:
            self._log, total = in_all(training.items, 1), in_all(training.items, len(items))
            when = np.full(len(items), training.last + 1)
            columns = item_counts(training.items, total, when, rates=self._labels)
        self._items = Growing(self._dense(columns))

    def logits(self, users: Users, *, owner: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Returns logits float32 [M] of pairs of a user and an item: positions in `users` and rows, int64 [M]."""
        dense = self.dense(users)[owner]
        dense[:, self._own] = self._items.rows[rows]
        long: Jagged | None = None
        if self._prefixes is not None:
            liked, number = users.liked, len(users.liked.values)
            past = np.repeat(np.arange(len(users.id)), liked.offsets.diff().numpy())
            events = Events(past, liked.values.numpy(), np.arange(number), np.ones(number, np.float32))
            queries = (owner.numpy(), rows.numpy(), np.full(len(rows), number))
            prefixes = self._prefixes.rows.numpy()
            found = shared_prefixes(events, prefixes, *queries, length=self._config.long)
            dense[:, [name.startswith(COUNTED) for name in self._config.dense]] = torch.from_numpy(found.counts)
            long = self._placed(from_arrays(found.items, found.offsets))
        history, rows = self._placed(last(users.liked, self._history)), rows + (rows >= self._nothing)
        return self._scorer.logits(user=users.id, history=history, owner=owner, rows=rows, dense=dense, long=long)

    def _placed(self, lists: Jagged) -> Jagged:
        """Returns lists of rows with those of the scorer, to which the one behind the run's stands for "no item"."""
        return lists._replace(values=lists.values + (lists.values >= self._nothing))

    def append(self, items: pa.Table, codes: np.ndarray, embedding: torch.Tensor) -> None:
        """Takes items behind those that there are, as `features` would write them: training never saw them.

        Args:
            items: see `operators.features.items.item_features`.
            codes: of their semantic IDs without the suffix, int32 [n, L].
            embedding: float32 [n, D].
        """
        features = as_trained(item_features(items, codes, self._tokens), np.zeros(len(codes), bool), self._trained)
        none = Known(*np.zeros((3, len(codes)), np.int64))
        total = Known(*(values.repeat(len(codes)) for values in self._log))
        counts = item_counts(none, total, none.first, rates=self._labels)
        quantizer = load_quantizer(self._run.uri("models", "quantizer")) if self._config.decoded_dim else None
        decoded = quantizer.decode(torch.from_numpy(codes)) if quantizer else embedding[:, :0]
        if self._prefixes is not None:
            sids = features["sid"].combine_chunks()
            self._prefixes.append(torch.from_numpy(prefixes_from(sids, len(self._prefixes.rows))))
        self._items.append(self._dense(counts))
        self._posted.append((features, embedding, decoded))
        tables, vectors, means = zip(*self._posted, strict=True)
        rows = pa.Table.from_batches(token_rows(pa.concat_tables(tables).to_batches(), self._config)).combine_chunks()
        self._scorer.follow(ItemFeatures(torch.cat(vectors), rows, self._config, torch.cat(means)))

    def _dense(self, columns: Mapping[str, Any] | pa.Table) -> torch.Tensor:
        """Returns what is counted of items, as float32 [N, n]."""
        counts = [np.asarray(columns[name]) for name in self._counted]
        return torch.from_numpy(np.stack(counts, 1).astype(np.float32))

    @functools.cached_property
    def _trained(self) -> np.ndarray:
        """Hashes of the tokens of semantic IDs that items in training have; the others are NULL in features/items."""
        table = self._run.read_table("features", "items", columns=["sid"])
        return np.unique(table["sid"].combine_chunks().flatten().to_numpy())

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
