"""What requests and answers look like, with an example of each."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from starlette.convertors import PathConvertor, register_url_convertor

from serving.filters import Where
from serving.query import Scored
from serving.settings import (
    MAX_CURSOR,
    MAX_DESCRIPTION,
    MAX_EVENTS,
    MAX_ID,
    MAX_IDS,
    MAX_K,
    MAX_LEVELS,
    MAX_NAMES,
    MAX_TEXT,
)

Id = Annotated[str, Field(min_length=1, max_length=MAX_ID)]
Ids = Annotated[list[Id], Field(max_length=MAX_IDS)]
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
K = Annotated[int, Field(ge=1, le=MAX_K, description="items wanted")]
Code = Annotated[int, Field(ge=0, lt=2**31)]


class _AnyText(PathConvertor):
    """Any text in a path, with slashes and, unlike Starlette's `path`, with line ends."""

    regex = r"[\s\S]*"


register_url_convertor("any", _AnyText())  # {item_id:any}
Prefix = Annotated[list[Code], Field(max_length=MAX_LEVELS)]

RUN = "demo:9f86d081884c7d65"
ID = "0f8fad5b-d9cb-469f-a165-70867728950e"
SHIRT = {"item_id": "item-430802", "title": "Red shirt", "caption": "A red striped shirt", "sid": "<a_3><b_1><c_4>"}
ANSWER = {
    "recommendation_id": ID,
    "run": RUN,
    "items": [{**SHIRT, "score": 0.31, "probability": 0.31, "recommenders": ["content"], "why": None}],
    "source": "history",
    "unknown": [],
}
WHERE = {"all": [{"attribute": "colour", "in": ["red", "blue"]}, {"not": {"attribute": "price", "at_least": 50}}]}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"


def _asks(**example: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", allow_inf_nan=False, json_schema_extra={"examples": [example]})


def _answers(**example: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [example]})


class _Asker(BaseModel):
    user_id: Id | None = Field(None, description="a user of the log, or one that is stored")
    history: Ids | None = Field(
        None, description="ids of items that they liked, oldest first; stands in for a stored one"
    )

    @model_validator(mode="after")
    def _someone(self) -> _Asker:
        if self.user_id is None and self.history is None:
            raise ValueError("give user_id, or history (an empty one for a visitor of whom nothing is known)")
        return self


class RecommendRequest(_Asker):
    """Who asks, for how many items, and which."""

    model_config = _asks(user_id="user-748393", k=5, where=WHERE, explain=True)

    k: K = 10
    cursor: str | None = Field(None, max_length=MAX_CURSOR, description="of the page before, for the next one")
    exclude: Ids = Field([], description="ids that the answer must not hold")
    negative: Ids = Field([], description="ids of items that the answer should not be like")
    where: Where | None = Field(None, description="what an item has to have")
    recommenders: list[Id] = Field(
        [], max_length=MAX_NAMES, description="who finds candidates; by default all of the run"
    )
    seen_after_days: float | None = Field(
        None, ge=0, le=36_500, description="days after which a liked item may come back; null: never, 0: at once"
    )
    explain: bool = Field(False, description="whether to say why each item is there")


class RankRequest(_Asker):
    """Who asks, and the items to put into order for them."""

    model_config = _asks(history=["item-430802"], items=["item-118334", "item-907553"])

    items: Ids = Field(min_length=1, description="ids of the items")
    explain: bool = Field(False, description="whether to say why each item is where it is")


class SimilarRequest(BaseModel):
    """What the items should be like: items, a text, or a picture."""

    model_config = _asks(picture=PIXEL, k=5)

    items: Ids = Field([], description="ids of items; items like all of them together")
    text: Text | None = None
    picture: str | None = Field(None, description="a picture's file (JPEG, PNG, WebP, …) in base64")
    k: K = 10
    where: Where | None = None

    @model_validator(mode="after")
    def _one(self) -> SimilarRequest:
        if bool(self.items) + (self.text is not None) + (self.picture is not None) != 1:
            raise ValueError("give one of items, text and picture")
        return self


class SearchRequest(BaseModel):
    """A text to search for."""

    model_config = _asks(text="striped shirt", k=5, where=WHERE)

    text: Text
    k: K = 10
    where: Where | None = None


class Event(BaseModel):
    """What a user did with an item."""

    model_config = _asks(user_id="user-748393", item_id="item-430802", type="like", recommendation_id=ID)

    user_id: Id
    item_id: Id = Field(description="of an item; it may be one that the catalogue does not have yet")
    type: Id = Field(description="one of the settings' `event_weights`")
    value: float | None = Field(None, ge=0, description="of `dwell`: seconds")
    timestamp: AwareDatetime | None = Field(None, description="when it happened; by default now")
    event_id: Id | None = Field(None, description="the user's event of this id is kept once, however often it is sent")
    recommendation_id: Id | None = Field(None, description="of the answer that showed the item")


class Events(BaseModel):
    """Several events; all are kept, or none."""

    model_config = _asks(events=[{"user_id": "user-748393", "item_id": "item-430802", "type": "buy", "event_id": "e1"}])

    events: list[Event] = Field(min_length=1, max_length=MAX_EVENTS)


Attribute = Annotated[
    list[Annotated[str, Field(max_length=MAX_TEXT)]],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    Field(max_length=MAX_NAMES),
]


class ItemChanges(BaseModel):
    """What changes of an item; what is left out stays."""

    model_config = _asks(hidden=True)

    title: Text | None = None
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION)] | None = None
    attributes: dict[Id, Attribute] = Field({}, max_length=MAX_IDS, description="their values, or a list of each one's")
    picture: str | None = Field(None, min_length=1, description="a picture's file (JPEG, PNG, WebP, …) in base64")
    uri: Id | None = Field(None, description="in place of `picture`: where one is, below the setting `media_roots`")
    hidden: bool = Field(False, description="whether the item is kept out of all answers")

    @model_validator(mode="after")
    def _one_picture(self) -> ItemChanges:
        if self.picture is not None and self.uri is not None:
            raise ValueError("give a picture or its uri, not both")
        return self


class NewItem(ItemChanges):
    """An item to post: a picture, a title or a description at least."""

    model_config = _asks(item_id="item-1", picture=PIXEL, attributes={"colour": "red"})

    item_id: Id = Field(description="that no other item has")


class Deleted(BaseModel):
    """The item is in no answer any more."""

    model_config = _answers(deleted=True)

    deleted: bool = True


class Kept(BaseModel):
    """How many events were new, how many had been kept before, and ids of items that the catalogue does not have."""

    model_config = _answers(added=1, known=0, unknown=[])

    added: int
    known: int
    unknown: list[str]


class Forgotten(BaseModel):
    """Nothing of the user is in the store any more."""

    model_config = _answers(forgotten=True)

    forgotten: bool = True


class Items(BaseModel):
    """Items, best first.

    Attributes:
        recommendation_id: of this answer alone.
        run: name and fingerprint of the run that answered.
        items: best first.
        source: where they come from, such as `history` or, where nothing is known of the user, `popularity`.
        unknown: ids of the request that the catalogue does not have.
    """

    model_config = _answers(**ANSWER)

    recommendation_id: str
    run: str
    items: list[Scored]
    source: str
    unknown: list[str]


class Page(Items):
    """Items, best first, and the cursor of the next page; null where there is none."""

    model_config = _answers(**ANSWER, cursor="Zm9v")

    cursor: str | None = None


class Similar(Items):
    """Items like others, nearest first; of a picture also what the run's models make of it."""

    model_config = _answers(**ANSWER, seen={"caption": "A red striped shirt", "sid": "<a_3><b_1>"})

    seen: dict[str, str | None] | None = None


class Medium(BaseModel):
    """An image or video; its URI as the catalogue gives it."""

    uri: str
    kind: str


class Item(BaseModel):
    """What is known of an item."""

    model_config = _answers(
        run=RUN,
        **SHIRT,
        description="Cotton, long sleeves.",
        interests=["nautical look"],
        attributes={"colour": ["red"]},
        media=[{"uri": "media/430802.jpg", "kind": "image"}],
    )

    run: str
    item_id: str
    title: str | None
    description: str | None
    caption: str | None
    interests: list[str] | None
    sid: str
    attributes: dict[str, list[str]] | None
    media: list[Medium] | None
    hidden: bool = False


class Branch(BaseModel):
    """A code that follows a prefix: how many items have it, and some of them."""

    code: int
    items: int
    examples: list[str]


class Tree(BaseModel):
    """The codes that follow a prefix of semantic IDs; none where no item has the prefix."""

    model_config = _answers(run=RUN, prefix=[3], codes=[{"code": 1, "items": 12, "examples": ["item-430802"]}])

    run: str
    prefix: list[int]
    codes: list[Branch]


class Attributes(BaseModel):
    """The commonest values of the attributes that most items have, with the number of items of each."""

    model_config = _answers(run=RUN, attributes={"colour": {"red": 31, "blue": 28}})

    run: str
    attributes: dict[str, dict[str, int]]


class Quality(BaseModel):
    """What `evaluate` has measured of each recommender and of the pipeline, and the numbers of items and users."""

    model_config = _answers(
        run=RUN, metrics={"content": {"ndcg@10": 0.04, "recall@10": 0.09}}, counts={"items": 800, "users": 2_000}
    )

    run: str
    metrics: dict[str, Any]
    counts: dict[str, int]


class Alive(BaseModel):
    """The process answers."""

    model_config = _answers(status="ok")

    status: str = "ok"


class Ready(BaseModel):
    """The service has answered one query of each kind, over so many items and users; a warning says what is wrong."""

    model_config = _answers(status="ready", run=RUN, items=800, users=2_000, recommenders=["content"])

    status: str = "ready"
    run: str
    items: int
    users: int
    recommenders: list[str]
    warning: str | None = None
