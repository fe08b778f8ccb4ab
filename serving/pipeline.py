"""How a finished run answers: candidates from its recommenders, scored, reranked and described. No Ray."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from models.common.jagged import Jagged, from_arrays
from models.common.recommender import Recommender
from operators.features.tokens import NULL_ID
from operators.log.events import DAY_US, SECOND_US
from serving.candidates import quotas
from serving.cascade import CONTENT, POPULARITY, RANKER, Cascade
from serving.catalogue import Catalogue
from serving.explain import explained
from serving.filters import Filter
from serving.finder import Finder, branches
from serving.posted import PostedItems
from serving.query import Answer, MissingError, NewItem, Query, Scored, Why
from serving.ranking import Users, trained_by
from serving.rerank.exposure import first_seen
from serving.rerank.negatives import less_like
from serving.rerank.reranker import Reranker
from serving.stores.base import ServedStore
from storage.errors import UserError
from storage.hashing import fingerprint, hash_ids
from storage.manifest import first_unfinished, require_manifest
from storage.run import RunDir

HISTORY = "history"  # the source of an answer where something is known of the user
SIMILAR = "similar"  # of one about items alone
LISTS = "coverage@10"  # a metric that lists have, and ratios of two recommenders have not
SHOWN = ("ndcg@10", "recall@10", "ndcg@10_interval", "recall@10_interval", LISTS)


class Pipeline:
    """Answers queries about the items and users of a run.

    Attributes:
        root: URI of the run.
        run: its name and the first half of a digest of what it was made of.
    """

    def __init__(
        self,
        run: RunDir,
        store: ServedStore,
        *,
        candidates: int = 200,
        fitted: Mapping[str, Recommender] | None = None,
        rules: str | None = None,
    ) -> None:
        """Loads a run; see `serving.settings.check_servable`.

        Args:
            run: the run.
            store: what is known of its users, and the items that were posted.
            candidates: that are scored for a query.
            fitted: recommenders of the run that need not be loaded, by name.
            rules: file of rules for what `recommend` answers.

        Raises:
            UserError: a model is missing or damaged, an artifact lacks items, or the file of rules has a mistake.
        """
        self.store = store
        self.cascade = Cascade(run, candidates=candidates, fitted=fitted)
        self.root, self.run, self._number = run.root, name_of(run.root), trained_by(run)
        self.finder, catalogue = Finder(run, self.cascade), Catalogue(run)
        self.posted = PostedItems(run, store, catalogue, self.cascade, self.finder)
        self.reranker: Reranker | None = None
        if rules is not None:
            self.reranker = Reranker(rules, catalogue, popularity=self.cascade.popularity, seen=first_seen(run))
        done = first_unfinished(run.root, ("evaluate",)) is None
        cards = run.read_json("metrics", "evaluate.json") if done else {}
        self._measured = {
            name: _shown(card) for name, card in cards.items() if isinstance(card, dict) and LISTS in card
        }

    @property
    def recommenders(self) -> list[str]:
        """Names of those that find candidates."""
        return list(self.cascade.recommenders)

    @property
    def users(self) -> int:
        """Number of users in the store."""
        return self.store.count()

    @property
    def items(self) -> int:
        """Number of items that may be in an answer."""
        return len(self.catalogue) - len(self.catalogue.gone)

    @property
    def catalogue(self) -> Catalogue:
        """The items, with those that were posted by now."""
        return self.posted.now()

    @property
    def warning(self) -> str | None:
        """One sentence where the file of rules is broken by now; None where all is well."""
        return None if self.reranker is None else self.reranker.file.problem

    def item(self, item_id: str) -> dict[str, Any] | None:
        """Returns an item with all there is to show of it; None where the catalogue has no such item."""
        item = self.catalogue.item(item_id)
        return None if item is None else {**item, "hidden": self.posted.hidden(item_id)}

    def post_item(self, new: NewItem) -> dict[str, Any]:
        """Takes an item, which the next answer of any replica may hold, and returns it; see `PostedItems.post`."""
        self.posted.post(new)
        return self._written(new.item_id)

    def change_item(self, item_id: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Changes an item, and returns it; see `PostedItems.change`."""
        self.posted.change(item_id, given)
        return self._written(item_id)

    def delete_item(self, item_id: str) -> None:
        """Removes an item; see `PostedItems.delete`."""
        self.posted.delete(item_id)

    @torch.inference_mode()
    def recommend(self, queries: Sequence[Query]) -> list[Answer]:
        """Answers queries; those of the same filter and the same recommenders go through the models together.

        An answer has fewer than k items only where no more candidates are left.
        """
        catalogue = self.catalogue
        users = self._users(queries, catalogue)
        together: dict[Any, list[int]] = defaultdict(list)
        for at, (query, user) in enumerate(zip(queries, users, strict=True)):
            # a query that waited may name recommenders of the run before this one
            names = tuple(name for name in query.recommenders if name in self.cascade.recommenders)
            names = names or (() if len(user.rows) else (POPULARITY,))
            together[names, query.where].append(at)
        answers: dict[int, Answer] = {}
        for (names, where), places in together.items():
            some = [queries[at] for at in places], [users[at] for at in places]
            found = self._recommend(*some, names, where, catalogue)
            answers.update(zip(places, found, strict=True))
        return [answers[at] for at in range(len(queries))]

    @torch.inference_mode()
    def rank(self, query: Query, items: Sequence[str]) -> Answer:
        """Orders items by the ranker for the user of a query, without those that the catalogue lacks or hides.

        Raises:
            UserError: the run has no ranker.
        """
        if self.cascade.ranker is None:
            raise UserError("The run has no ranker that puts items into order: its workflow lacks the stage `rank`.")
        catalogue = self.catalogue
        (user,) = self._users([query], catalogue)
        at = catalogue.rows(list(dict.fromkeys(items)))
        rows = torch.from_numpy(at[(at >= 0) & ~np.isin(at, catalogue.gone)])
        logits, order = self.cascade.logits(_users([user]), rows[None])[0].sort(descending=True, stable=True)
        chances, rows = logits.double().sigmoid(), rows[order][: query.k]
        liked = torch.from_numpy(user.rows)
        why = explained(catalogue, self.cascade.vectors, rows, liked) if query.explain else None
        scored = _described(catalogue, rows, chances, chances, [[RANKER]] * len(rows), why)
        unknown = _unknown(catalogue, [*items, *(query.history or ())])
        return Answer(scored, HISTORY if len(user.rows) else POPULARITY, unknown)

    @torch.inference_mode()
    def similar(
        self,
        *,
        items: Sequence[str] = (),
        text: str | None = None,
        picture: bytes | None = None,
        k: int,
        where: Filter | None = None,
    ) -> Answer:
        """Returns the items whose embeddings are nearest to those of some items, of a text or of a picture.

        Raises:
            UserError: the picture cannot be used, or the run has no model for new texts and pictures.
        """
        catalogue = self.catalogue
        rows, look = catalogue.rows(items), None
        if picture is not None:
            look = self.finder.of_picture(picture)
            query = look.vector
        elif text is not None:
            query = self.finder.of_text(text)
        else:
            query = self.finder.of_items(rows[rows >= 0]) if (rows >= 0).any() else torch.zeros(0)
        if not len(query):
            return Answer([], SIMILAR, _unknown(catalogue, items))
        allowed = None if where is None else catalogue.matching(where)
        banned = [*rows[rows >= 0].tolist(), *catalogue.gone.tolist()]
        found, cosine = self.finder.nearest(query, k=k, items=len(catalogue), banned=banned, allowed=allowed)
        scored = _described(catalogue, found, cosine, None, [[CONTENT]] * len(found))
        seen = None if look is None else {"caption": look.caption, "sid": look.sid}
        return Answer(scored, SIMILAR, _unknown(catalogue, items), seen)

    def search(self, text: str, *, k: int, where: Filter | None = None) -> Answer:
        """Returns the items nearest to a text; see `similar`."""
        return self.similar(text=text, k=k, where=where)

    def picture(self, item_id: str) -> bytes | None:
        """Returns the first picture of an item as a small JPEG; None where there is none that can be read."""
        item = self.item(item_id)
        return None if item is None else self.posted.picture(item_id) or self.finder.picture(item)

    def unknown(self, ids: Sequence[str]) -> list[str]:
        """Returns those of some ids that the catalogue lacks."""
        return _unknown(self.catalogue, ids)

    def current(self) -> bool:
        """Whether the run is still what was loaded of it."""
        try:
            return name_of(self.root) == self.run
        except UserError:
            return False

    def tree(self, prefix: Sequence[int]) -> dict[str, Any]:
        """Returns what follows a prefix of semantic IDs; see `serving.finder.branches`."""
        return {"codes": branches(self.catalogue, prefix, self.cascade.popularity)}

    def attributes(self) -> dict[str, dict[str, int]]:
        """Returns attributes of the catalogue; see `serving.catalogue.Catalogue.attributes`."""
        return self.catalogue.attributes

    def quality(self) -> dict[str, Any]:
        """Returns what `evaluate` has measured of the recommenders and of the pipeline, by name; {} before that."""
        return self._measured

    def _written(self, item_id: str) -> dict[str, Any]:
        if (item := self.item(item_id)) is None:
            raise MissingError(f"The item {item_id[:100]!r} was deleted meanwhile.")
        return item

    def _recommend(
        self,
        queries: Sequence[Query],
        users: Sequence[_User],
        names: tuple[str, ...],
        where: Filter | None,
        catalogue: Catalogue,
    ) -> list[Answer]:
        wanted = quotas(names, self.cascade.candidates) if names else self.cascade.blend.candidates
        allowed = None if where is None else catalogue.matching(where)
        banned = [_banned(query, user, catalogue) for query, user in zip(queries, users, strict=True)]
        ranked = self.cascade.ranked(
            _users(users), wanted, banned=_lists(banned), allowed=allowed, items=len(catalogue)
        )
        pins = {} if self.reranker is None else self.reranker.pins(catalogue, where)
        if pins:
            rows = np.array(list(pins.values()))
            known = [np.isin(rows, np.concatenate(pair)) for pair in zip(banned, ranked.items.numpy(), strict=True)]
            ranked = self.cascade.joined(_users(users), ranked, torch.from_numpy(np.where(known, -1, rows)))
        scores = self.cascade.scores(ranked, wanted)
        answers, vectors = [], self.cascade.vectors
        for at, (query, user) in enumerate(zip(queries, users, strict=True)):
            own, items = scores[at], ranked.items[at]
            negative = np.concatenate([catalogue.rows(query.negative), user.disliked])
            if (negative >= 0).any():
                own = less_like(own, vectors[items.clamp_min(0)], vectors[torch.from_numpy(negative[negative >= 0])])
            own, order = own.sort(descending=True, stable=True)
            order, propensity = order[own > -torch.inf], None
            if self.reranker is None:
                order = order[: query.k]
            else:
                found = self.reranker.order(
                    catalogue, vectors, items[order], own[: len(order)], query.k, pins=pins, draw=query.draw
                )
                order, own, propensity = order[found.at], found.scores[found.at], found.propensity.tolist()
            listed = (ranked.places[at, order] < torch.inf)[:, : len(wanted)].tolist()
            by = [[name for name, there in zip(wanted, row, strict=True) if there] for row in listed]
            chances = ranked.logits[at, order].double().sigmoid() if self.cascade.ranker else None
            why = None
            if query.explain:
                why = explained(catalogue, vectors, items[order], torch.from_numpy(user.rows))
            described = _described(catalogue, items[order], own, chances, by, why, propensity)
            unknown = _unknown(catalogue, [*(query.history or ()), *query.exclude, *query.negative])
            answers.append(Answer(described, HISTORY if len(user.rows) else POPULARITY, unknown))
        return answers

    def _users(self, queries: Sequence[Query], catalogue: Catalogue) -> list[_User]:
        """Returns what is known of the user of each query; what the query tells stands in for what is stored."""
        ids = [query.user_id for query in queries if query.user_id is not None]
        stored = dict(zip(ids, self.store.read(ids), strict=True)) if ids else {}
        users = []
        for query in queries:
            user = stored.get(query.user_id) if query.user_id is not None else None
            rows, times, events, number = np.empty(0, np.int64), np.empty(0, np.int64), -1, NULL_ID
            disliked = np.empty(0, np.int64)
            if user is not None:
                rows, times, events = catalogue.rows_by_hash(user.items), user.times, user.events
                disliked = catalogue.rows_by_hash(user.disliked)
                number = int(hash_ids([query.user_id])[0]) if self._number in user.trained else NULL_ID
            if query.history is not None:
                rows = catalogue.rows(query.history)
                times = np.full(len(rows), np.iinfo(np.int64).max)
            users.append(_User(number, rows[rows >= 0], times[rows >= 0], events, disliked[disliked >= 0]))
        return users


def name_of(root: str) -> str:
    """Returns the name of a run and the first half of a digest of what it was made of.

    Raises:
        UserError: there is no run, or its manifest is damaged.
    """
    manifest = require_manifest(root)
    made = fingerprint(" ".join(f"{name} {entry.fingerprint}" for name, entry in manifest.stages.items()))
    return f"{manifest.name}:{made[:16]}"


class _User(NamedTuple):
    """What is known of one query's user.

    Attributes:
        number: hash of the id, `NULL_ID` where the ranker has not learned it.
        rows, times: of what they liked, oldest first, int64 [n].
        events: number of all their events, -1 where that is not known.
        disliked: rows of the items that they dislike, which they never get, and of which they get less like them.
    """

    number: int
    rows: np.ndarray
    times: np.ndarray
    events: int
    disliked: np.ndarray


def _shown(card: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is shown of a recommender's metrics, None for what is missing and for bounds of which one is."""
    found = {key: card.get(key) for key in SHOWN}
    return {key: None if isinstance(value, list) and None in value else value for key, value in found.items()}


def _users(users: Sequence[_User]) -> Users:
    ids = torch.tensor([user.number for user in users])
    return Users(ids, _lists([user.rows for user in users]), np.array([user.events for user in users]))


def _lists(rows: Sequence[np.ndarray]) -> Jagged:
    return from_arrays(np.concatenate(rows), np.cumsum([0, *map(len, rows)]))


def _banned(query: Query, user: _User, catalogue: Catalogue) -> np.ndarray:
    """Returns the rows that must not be in the answer to a query, int64 [n]."""
    excluded = catalogue.rows([*query.exclude, *query.negative])
    seen = user.rows
    if query.seen_after is not None:
        since = time.time() * SECOND_US - query.seen_after * DAY_US
        seen = seen[user.times > since] if query.seen_after else seen[:0]
    return np.concatenate([excluded[excluded >= 0], seen, user.disliked, catalogue.gone])


def _unknown(catalogue: Catalogue, ids: Sequence[str]) -> list[str]:
    distinct = list(dict.fromkeys(ids))
    rows = catalogue.rows(distinct)
    return [item_id for item_id, row in zip(distinct, rows.tolist(), strict=True) if row < 0]


def _described(
    catalogue: Catalogue,
    rows: torch.Tensor,
    scores: torch.Tensor,
    chances: torch.Tensor | None,
    by: Sequence[list[str]],
    why: Sequence[Why] | None = None,
    propensity: Sequence[float] | None = None,
) -> list[Scored]:
    """Returns items at rows as they are answered; what is beside them is in their order."""
    shown = catalogue.described(rows.tolist(), ["item_id", "title", "caption", "sid"])
    chance: Sequence[float | None] = [None] * len(shown) if chances is None else chances.tolist()
    reasons: Sequence[Why | None] = why or [None] * len(shown)
    drawn = propensity or [1.0] * len(shown)
    beside = zip(shown, scores.tolist(), chance, by, reasons, drawn, strict=False)
    return [
        Scored(**item, score=score, probability=likely, recommenders=names, why=reason, propensity=had)
        for item, score, likely, names, reason, had in beside
    ]
