"""What is put to the pipeline, and what it gives back; the routes turn HTTP into these and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from serving.filters import Filter
from storage.errors import UserError


class TakenError(UserError):
    """There is an item of this id already."""


class MissingError(UserError):
    """There is no item of this id."""


@dataclass(frozen=True)
class NewItem:
    """An item as it is posted.

    Attributes:
        item_id: that nothing has yet.
        title, description: of it.
        attributes: their values by name.
        picture: a file.
        hidden: whether it is kept out of all answers.
    """

    item_id: str
    title: str | None = None
    description: str | None = None
    attributes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    picture: bytes | None = None
    hidden: bool = False


@dataclass(frozen=True)
class Query:
    """A request for items that a user would like.

    Attributes:
        user_id: a known user; None for a visitor.
        history: ids of the items that they liked, oldest first; where it is given, it stands in for the stored one.
        k: items wanted.
        exclude: ids that the answer must not hold.
        negative: ids of items that the answer should not be like.
        where: what an item has to have; None: anything.
        recommenders: names of those that find candidates; none: those of the settings.
        seen_after: days after which an item that the user has liked may come back; None: never, 0: at once.
        explain: whether to say why each item is there.
        draw: what the service draws for it; the same text, the same draws.
    """

    user_id: str | None = None
    history: Sequence[str] | None = None
    k: int = 10
    exclude: Sequence[str] = ()
    negative: Sequence[str] = ()
    where: Filter | None = None
    recommenders: tuple[str, ...] = ()
    seen_after: float | None = None
    explain: bool = False
    draw: str = field(default="", compare=False)


@dataclass(frozen=True)
class Why:
    """Why an item is in an answer.

    Attributes:
        nearest: id of the item of the history whose embedding is nearest; None without a history.
        similarity: their cosine.
        shared_sid: the levels of the semantic ID that both share from the first one on, spelled; "" for none.
        words: words of the captions of both.
        interests: of both.
    """

    nearest: str | None = None
    similarity: float | None = None
    shared_sid: str = ""
    words: list[str] = field(default_factory=list)
    interests: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Scored:
    """An item of an answer.

    Attributes:
        item_id, title, caption, sid: of the item; sid is spelled.
        score: of the order of the answer, higher first.
        probability: of a positive, by the ranker; None where no ranker was asked.
        recommenders: names of those that found it.
        why: where the query wants it.
        propensity: probability with which it got its place.
    """

    item_id: str
    title: str | None
    caption: str | None
    sid: str
    score: float
    probability: float | None = None
    recommenders: list[str] = field(default_factory=list)
    why: Why | None = None
    propensity: float = 1.0


@dataclass(frozen=True)
class Answer:
    """The answer to a query.

    Attributes:
        items: best first.
        source: `history` or, where nothing is known of the user, `popularity`; `similar` for items like others.
        unknown: ids of the query that the catalogue does not have.
        seen: `caption` and `sid` of the picture that was asked about.
        run: name and fingerprint of the run that answered.
        since: when the runs began to be served as they are, microseconds; 0 where that is not known.
    """

    items: list[Scored]
    source: str
    unknown: list[str]
    seen: dict[str, str | None] | None = None
    run: str = ""
    since: int = 0
