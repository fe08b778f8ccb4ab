"""How a finished run answers: candidates near the user's history, ranked by the trained ranker. No Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from models.common.jagged import Jagged, chained, from_arrays, gather, last, repeated
from models.ranking.ranker import load_ranker
from models.recommenders.content import content_and_popularity
from models.semantic_ids.suffixes import sid_string
from operators.columns import jagged_of, read_rows
from operators.features.long_history import COUNTED, read_prefixes, shared_prefixes
from operators.features.ranker_inputs import read_items
from operators.features.tokens import NULL_ID
from operators.log.events import Events
from storage import files
from storage.run import RunDir

HISTORY = "history"  # candidates are the neighbours of the user's last items
POPULARITY = "popularity"  # nothing is known of the user: candidates are the popular items


@dataclass(frozen=True)
class Query:
    """Who asks, and for how many items: a known user by id, or anyone by the items they liked, oldest first."""

    user_id: str | None = None
    history: Sequence[str] = ()
    k: int = 10


class Recommendation(NamedTuple):
    """The answer to a query."""

    items: list[dict[str, Any]]  # item_id, score, title, caption, sid; best first
    source: str  # of the candidates, HISTORY or POPULARITY
    unknown: list[str]  # ids of the history that the catalogue does not have


class _User(NamedTuple):
    """What the ranker and the retrieval of candidates have to know of one query's user."""

    id: int  # hashed, NULL_ID for a user that training has not seen
    history: Jagged  # one list, rows of the last positives
    seen: Jagged  # one list, rows never to recommend
    dense: torch.Tensor  # float32 [n], NaN where unknown


class Pipeline:
    """Answers queries from memory. It takes Arrow columns and tensors, no object per user or per item but their ids."""

    def __init__(self, run: RunDir, *, candidates: int = 200) -> None:
        """Loads a run whose stage `rank` is complete; see `serving.settings.check_servable`.

        Args:
            run: the run.
            candidates: candidates that content hands to the ranker per query.

        Raises:
            UserError: the ranker is missing or damaged, or an artifact lacks items.
        """
        spec = run.read_json("features", "spec.json")
        retriever = run.read_json("models", "retriever", "config.json")
        self.ranker = load_ranker(run.uri("models", "ranker"))
        self._dense, users = list(self.ranker.config.dense), run.read_table("features", "users")
        there = files.dataset(run.uri("features", "items")).schema.names  # with the token lists, which read_items maps
        wanted = {"item_id", "item_events", "item_rate", *self._dense}
        table = run.read_table("features", "items", columns=[name for name in there if name in wanted])
        self.items = read_items(run, self.ranker.config)
        self.content = content_and_popularity(self.items.embedding, popularity(table), retriever["popularity_weight"])
        self.candidates = candidates
        self._row = {item_id: row for row, item_id in enumerate(table["item_id"].to_pylist())}
        self._display = display_table(run, table["item_id"])
        self._user_row = {user_id: row for row, user_id in enumerate(users["user_id"].to_pylist())}
        self._user_ids = users["user"].to_pylist()
        self._histories, self._seen = jagged_of(users["history"]), jagged_of(users["seen"])
        self._max_history: int = spec["history"]
        self._labels: bool = spec["labels"]
        self._prefixes = read_prefixes(run) if self.ranker.config.long else None
        self._item_dense = dense_columns(table, self._dense)
        self._user_dense = dense_columns(users, self._dense)

    @torch.inference_mode()
    def recommend(self, queries: Sequence[Query]) -> list[Recommendation]:
        """Answers queries together: one retrieval and one pass of the ranker for all.

        An answer has fewer than k items only where the catalogue has no more that the user has not seen.
        """
        users = [self._user(query) for query in queries]
        history, seen = chained([user.history for user in users]), chained([user.seen for user in users])
        candidates = self.content.recommend(history, k=self.candidates, banned=seen).items
        usable = candidates >= 0
        scores = torch.full(candidates.shape, -torch.inf, dtype=torch.float64)
        if usable.any():  # TorchRec takes no empty batch
            scores[usable] = self._scores(users, history, seen, owner=usable.nonzero()[:, 0], rows=candidates[usable])
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        best = candidates.gather(1, order)
        return [
            Recommendation(
                items=self._described(best[i, : query.k], scores[i, : query.k]),
                source=HISTORY if len(users[i].history.values) else POPULARITY,
                unknown=[item_id for item_id in dict.fromkeys(query.history) if item_id not in self._row],
            )
            for i, query in enumerate(queries)
        ]

    def item(self, item_id: str) -> dict[str, Any] | None:
        """Returns an item with all there is to show of it; None where the catalogue has no such item."""
        row = self._row.get(item_id)
        return None if row is None else self._display.slice(row, 1).to_pylist(maps_as_pydicts="strict")[0]

    @property
    def users(self) -> int:
        """Numbers of users with a history of their own."""
        return len(self._user_row)

    def _user(self, query: Query) -> _User:
        row = self._user_row.get(query.user_id) if query.user_id is not None else None
        if row is not None:
            at = torch.tensor([row])
            history, seen = (gather(source, at) for source in (self._histories, self._seen))
            return _User(self._user_ids[row], history, seen, self._user_dense[row])
        rows = torch.tensor([self._row[item] for item in query.history if item in self._row], dtype=torch.int64)
        seen = repeated(rows, 1)
        dense = torch.full((len(self._dense),), torch.nan)
        # Without labels the history is all that this user did; with labels, user_events counts impressions, too.
        if not self._labels and "user_events" in self._dense:
            dense[self._dense.index("user_events")] = np.log1p(len(rows))
        return _User(NULL_ID, last(seen, self._max_history), seen, dense)

    def _scores(
        self, users: Sequence[_User], history: Jagged, seen: Jagged, *, owner: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """Probability of every pair of a user (position in `users`) and an item (row), float64 [M]."""
        item_dense, user_dense = self._item_dense[rows], torch.stack([user.dense for user in users])[owner]
        dense = torch.where(item_dense.isnan(), user_dense, item_dense)
        long: Jagged | None = None
        if self._prefixes is not None:
            past, number = np.repeat(np.arange(len(users)), seen.offsets.diff().numpy()), len(seen.values)
            liked = Events(past, seen.values.numpy(), np.arange(number), np.ones(number, np.float32))
            asked = (owner.numpy(), rows.numpy(), np.full(len(rows), number))
            shared = shared_prefixes(liked, self._prefixes, *asked, length=self.ranker.config.long)
            dense[:, [name.startswith(COUNTED) for name in self._dense]] = torch.from_numpy(shared.counts)
            long = from_arrays(shared.items, shared.offsets)
        inputs = self.items.inputs(
            user=torch.tensor([user.id for user in users])[owner],
            history=gather(history, owner),
            rows=rows,
            dense=dense,
            long=long,
        )
        return self.ranker(inputs)[0].double().sigmoid()

    def _described(self, rows: torch.Tensor, scores: torch.Tensor) -> list[dict[str, Any]]:
        known = scores > -torch.inf
        shown = self._display.select(["item_id", "title", "caption", "sid"]).take(pa.array(rows[known].numpy()))
        return [{**item, "score": score} for item, score in zip(shown.to_pylist(), scores[known].tolist(), strict=True)]


def dense_columns(table: pa.Table, names: Sequence[str]) -> torch.Tensor:
    """Columns by name, float32 [N, n]; NaN where the table has no such column."""
    absent = np.full(table.num_rows, np.nan, dtype=np.float32)
    columns = [table[name].to_numpy() if name in table.column_names else absent for name in names]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))


def popularity(items: pa.Table) -> torch.Tensor:
    """Positives that items have had, float32 [N]; with labels their events times the smoothed share of positives."""
    events = dense_columns(items, ["item_events"])[:, 0].expm1()
    return events * dense_columns(items, ["item_rate"])[:, 0] if "item_rate" in items.column_names else events


def display_table(run: RunDir, item_ids: pa.ChunkedArray) -> pa.Table:
    """Returns what people see of every item, in the order of `item_ids`.

    Returns:
        item_id, title, description, caption, sid (spelled), attributes, media.

    Raises:
        ArtifactError: an item is missing in an artifact.
    """
    shown = read_rows(run, item_ids, "items", columns=["title", "description", "caption"])
    sids = read_rows(run, item_ids, "sids", columns=["codes"])["codes"]
    catalog = read_rows(run, item_ids, "catalog", "items", columns=["attributes", "media"])
    spelled = pa.array([sid_string(codes) for codes in sids.to_pylist()], pa.string())
    shown = shown.append_column("sid", spelled)
    for column in ("attributes", "media"):
        shown = shown.append_column(column, catalog[column])
    return shown.combine_chunks()
