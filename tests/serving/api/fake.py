"""A run in a few lines that keeps the contract of the routes: small, exact, and slow or broken where a test asks."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from PIL import Image

from serving.api.runs import EXAMPLE
from serving.api.served import Served
from serving.query import Answer, MissingError, NewItem, Query, Scored, TakenError, Why
from serving.stores.base import Event, Impression
from storage.errors import UserError

ITEMS = [f"item {n}" for n in range(30)]
LIKED = {"user 1": ["item 0", "item 4"]}


class FakeRun:
    """Recommends the first items that the user has not liked and the query does not exclude."""

    run = "fake:0123456789abcdef"
    shadowed = False
    warning: str | None = None

    def __init__(self) -> None:
        self.recommenders = ["content", "popularity"]
        self.liked = {user: list(items) for user, items in LIKED.items()}
        self.queries: list[Query] = []
        self.passes: list[int] = []
        self.asked: dict[str, Any] = {}
        self.error: Exception | None = None
        self.events: dict[tuple[str, str], Event] = {}
        self.shown: list[Impression] = []
        self.posted: dict[str, dict[str, Any]] = {}
        self.unlucky: str | None = None
        self.scores: tuple[float, float] | None = None
        self.may_answer = threading.Event()
        self.may_answer.set()

    @property
    def users(self) -> int:
        return len(self.liked)

    @property
    def items(self) -> int:
        return len(ITEMS)

    @property
    def names(self) -> list[str]:
        return [self.run]

    def answering(self, user_id: str | None) -> FakeRun:
        return self

    def shadow(self, queries: Sequence[Query]) -> list[Answer]:
        return [replace(self._recommend(query), run="unseen:0") for query in queries] if self.shadowed else []

    def state(self) -> dict[str, Any]:
        return {**EXAMPLE, "warning": self.warning}

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass

    @contextmanager
    def held(self):
        """For the length of a block, recommendations and searches wait."""
        self.may_answer.clear()
        try:
            yield
        finally:
            self.may_answer.set()

    def recommend(self, queries: Sequence[Query]) -> list[Answer]:
        assert self.may_answer.wait(60)
        self.passes.append(len(queries))
        self.queries += queries
        if self.error is not None:
            raise self.error
        return [self._recommend(query) for query in queries]

    def _recommend(self, query: Query) -> Answer:
        if query.user_id is not None and query.user_id == self.unlucky:
            raise ZeroDivisionError(query.user_id)
        history = query.history if query.history is not None else self.liked.get(query.user_id or "", [])
        seen = set() if query.seen_after == 0 else set(history)
        gone = {*seen, *query.exclude, *query.negative}
        found = [item for item in ITEMS if item not in gone][: query.k]
        known = [item for item in history if item in ITEMS]
        why = Why(nearest=known[-1] if known else None) if query.explain else None
        return self._answer(found, history, "history" if known else "popularity", why)

    def _answer(self, found: Sequence[str], asked: Sequence[str], source: str, why: Why | None = None) -> Answer:
        items = [
            Scored(item, f"title of {item}", None, "<a_1><b_2>", *(self.scores or (1 / (n + 1), 0.5)), ["content"], why)
            for n, item in enumerate(found)
        ]
        return Answer(items, source, [item for item in dict.fromkeys(asked) if item not in ITEMS], run=self.run)

    def rank(self, query: Query, items: Sequence[str]) -> Answer:
        return self._answer([item for item in sorted(items) if item in ITEMS], items, "ranker")

    def similar(self, *, items: Sequence[str] = (), text=None, picture=None, k: int, where) -> Answer:
        self.asked = {"items": items, "text": text, "picture": picture, "where": where}
        return self._answer([item for item in ITEMS if item not in items][:k], items, "embedding")

    def search(self, text: str, *, k: int, where) -> Answer:
        assert self.may_answer.wait(60)
        if text == "unanswerable":
            raise UserError("This run has no text encoder: search needs one.")
        self.asked = {"text": text, "where": where}
        return self._answer(ITEMS[:k], [], "text")

    def add(self, events: Sequence[Event]) -> tuple[int, list[str]]:
        before = len(self.events)
        self.events |= {event[:2]: event for event in events if event[:2] not in self.events}
        return len(self.events) - before, [event.item_id for event in events if event.item_id not in ITEMS]

    def show(self, impressions: Sequence[Impression]) -> None:
        if self.error is not None:
            raise self.error
        self.shown += impressions

    def forget(self, user_id: str) -> None:
        self.liked.pop(user_id, None)

    def item(self, item_id: str) -> dict[str, Any] | None:
        if item_id in self.posted:
            return self.change_item(item_id, {})
        if item_id not in ITEMS:
            return None
        nothing = dict.fromkeys(("title", "description", "caption", "interests", "media"))
        return {"item_id": item_id, "sid": "<a_1><b_2>", "attributes": {"colour": ["red"]}, "hidden": False, **nothing}

    def post_item(self, new: NewItem) -> dict[str, Any]:
        if new.item_id in {*ITEMS, *self.posted}:
            raise TakenError(f"There is an item {new.item_id!r} already.")
        self.posted[new.item_id] = {"picture": new.picture}
        return self.change_item(new.item_id, {"title": new.title, "attributes": new.attributes})

    def change_item(self, item_id: str, given: Mapping[str, Any]) -> dict[str, Any]:
        if item_id not in {*ITEMS, *self.posted}:
            raise MissingError(f"There is no item {item_id!r}.")
        nothing = dict.fromkeys(("title", "description", "caption", "interests", "media", "attributes"))
        self.posted[item_id] = {**nothing, **self.posted.get(item_id, {}), **given}
        own = {name: value for name, value in self.posted[item_id].items() if name != "picture"}
        return {"item_id": item_id, "sid": "<a_1>", **own}

    def delete_item(self, item_id: str) -> None:
        if self.posted.pop(item_id, None) is None:
            raise MissingError(f"There is no item {item_id!r}.")

    def picture(self, item_id: str) -> bytes | None:
        if item_id != "item 1":
            return None
        content = io.BytesIO()
        Image.new("RGB", (8, 8)).save(content, "JPEG")
        return content.getvalue()

    def tree(self, prefix: Sequence[int]) -> dict[str, Any]:
        below = [{"code": 2, "items": 30, "examples": ITEMS[:3]}] if list(prefix) in ([], [1]) else []
        return {"codes": below}

    def attributes(self) -> dict[str, dict[str, int]]:
        return {"colour": {"red": len(ITEMS)}}

    def quality(self) -> dict[str, Any]:
        return {"auc": 0.7, "ndcg": float("nan")}


def conforms(run: FakeRun) -> Served:
    """The type checker makes sure of it."""
    return run
