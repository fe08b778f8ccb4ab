"""What the routes ask of the runs that are served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from serving.filters import Filter
from serving.query import Answer, NewItem, Query
from serving.stores.base import Event, Impression


class Answering(Protocol):
    """A loaded run, or several. Many threads ask at once; what it cannot answer is a UserError with one sentence."""

    @property
    def run(self) -> str:
        """Name and fingerprint of the run."""
        ...

    @property
    def recommenders(self) -> list[str]:
        """Names of those that find candidates."""
        ...

    @property
    def users(self) -> int:
        """Number of users that it knows."""
        ...

    @property
    def items(self) -> int:
        """Number of items of the catalogue."""
        ...

    @property
    def warning(self) -> str | None:
        """One sentence about what is wrong while it answers all the same; None where all is well."""
        ...

    def recommend(self, queries: Sequence[Query]) -> list[Answer]:
        """Answers queries together, in their order."""
        ...

    def rank(self, query: Query, items: Sequence[str]) -> Answer:
        """Puts items into the order of the ranker for a user."""
        ...

    def similar(
        self,
        *,
        items: Sequence[str] = (),
        text: str | None = None,
        picture: bytes | None = None,
        k: int,
        where: Filter | None,
    ) -> Answer:
        """Finds items like others, like a text or like a picture (an encoded one)."""
        ...

    def search(self, text: str, *, k: int, where: Filter | None) -> Answer:
        """Finds items by their texts."""
        ...

    def item(self, item_id: str) -> dict[str, Any] | None:
        """Returns what there is to show of an item; None where the catalogue has no such item."""
        ...

    def picture(self, item_id: str) -> bytes | None:
        """Returns a small JPEG of the first picture of an item, if there is one."""
        ...

    def tree(self, prefix: Sequence[int]) -> dict[str, Any]:
        """Returns the `codes` below a prefix of semantic IDs: code, items and examples of each."""
        ...

    def attributes(self) -> dict[str, dict[str, int]]:
        """Returns the commonest values of attributes, and how many items have each."""
        ...

    def quality(self) -> dict[str, Any]:
        """Returns metrics of the run."""
        ...


class Served(Answering, Protocol):
    """The runs that are served, and the store that they share."""

    @property
    def names(self) -> list[str]:
        """Names and fingerprints of all runs; `run` is the first one, which answers whatever names no user."""
        ...

    @property
    def shadowed(self) -> bool:
        """Whether a run answers in the shadow of another."""
        ...

    def answering(self, user_id: str | None) -> Answering:
        """Returns the run that answers a user, always the same as long as the same runs are served."""
        ...

    def shadow(self, queries: Sequence[Query]) -> list[Answer]:
        """Answers queries by the run in the shadow; none where there is none."""
        ...

    def state(self) -> dict[str, Any]:
        """Returns which runs are served and how their answers fare."""
        ...

    def start(self) -> None:
        """Follows what is to be served, until `close`."""
        ...

    def close(self) -> None:
        """Follows it no more."""
        ...

    def post_item(self, new: NewItem) -> dict[str, Any]:
        """Takes an item that is in the next answer, and returns it; raises TakenError where there is such an item."""
        ...

    def change_item(self, item_id: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Changes what is given of an item, and returns it; raises MissingError where there is none."""
        ...

    def delete_item(self, item_id: str) -> None:
        """Removes an item; raises MissingError where there is none."""
        ...

    def add(self, events: Sequence[Event]) -> tuple[int, list[str]]:
        """Keeps events, all or none; returns how many were new, and the ids of items that the catalogue lacks."""
        ...

    def show(self, impressions: Sequence[Impression]) -> None:
        """Keeps answers that were given."""
        ...

    def forget(self, user_id: str) -> None:
        """Removes all that is kept of a user, for good."""
        ...
