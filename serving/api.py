"""The HTTP surface: routes, requests and responses. Plain FastAPI; Ray Serve mounts it (serving/app.py)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from serving.pipeline import Pipeline, Query, Recommendation
from serving.settings import MAX_K

Id = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class RecommendRequest(BaseModel):
    """Who asks: a user by id, or anyone by the items they liked, oldest first."""

    model_config = ConfigDict(extra="forbid")

    user_id: Id | None = None
    history: list[Id] | None = Field(None, max_length=1000)
    k: int = Field(10, ge=1, le=MAX_K)

    @model_validator(mode="after")
    def _one_of_both(self) -> RecommendRequest:
        if (self.user_id is None) == (self.history is None):
            raise ValueError("give either user_id or history")
        return self


class RecommendedItem(BaseModel):
    """An item of the answer; `score` is the probability of a positive (a click, a like)."""

    item_id: str
    score: float
    title: str | None
    caption: str | None
    sid: str


class RecommendResponse(BaseModel):
    """Items, best first; the source of their candidates; ids of the history that the catalogue does not have."""

    items: list[RecommendedItem]
    source: Literal["history", "popularity"]
    unknown: list[str]


class Medium(BaseModel):
    """An image or video; its URI as the catalogue gives it."""

    uri: str
    kind: str


class Item(BaseModel):
    """What is known of an item."""

    item_id: str
    title: str | None
    description: str | None
    caption: str | None
    sid: str
    attributes: dict[str, str | None] | None
    media: list[Medium] | None


class Health(BaseModel):
    """The service has loaded its run and answers."""

    status: Literal["ok"] = "ok"
    items: int
    users: int


class Problem(BaseModel):
    """What was wrong with a request, in one sentence."""

    detail: str


def http_api(pipeline: Pipeline, recommend: Callable[[Query], Awaitable[Recommendation]]) -> FastAPI:
    """Returns the application over a loaded run.

    Args:
        pipeline: what knows the items.
        recommend: answers one query; given apart, so that the server may gather queries into batches.
    """
    api = FastAPI(title="tesserec", description="Recommendations from a finished run.")

    @api.post("/v1/recommend", responses={422: {"model": Problem}})
    async def recommend_items(request: RecommendRequest) -> RecommendResponse:
        """Returns the k items that this user would most probably like, among those new to them."""
        query = Query(user_id=request.user_id, history=request.history or [], k=request.k)
        return RecommendResponse.model_validate((await recommend(query))._asdict())

    @api.get("/v1/items/{item_id:path}", responses={404: {"model": Problem}})
    async def item(item_id: str) -> Item:
        """Returns one item of the catalogue."""
        fields = pipeline.item(item_id)
        if fields is None:
            raise HTTPException(404, f"There is no item {item_id!r} in this catalogue.")
        return Item.model_validate(fields)

    @api.get("/healthz")
    async def healthz() -> Health:
        """Whether the service is up, and over how much."""
        return Health(items=len(pipeline.items), users=pipeline.users)

    api.add_exception_handler(RequestValidationError, explain)
    return api


async def explain(_: Request, error: Exception) -> JSONResponse:
    """Status 422 with every mistake of a request in one sentence."""
    mistakes = error.errors() if isinstance(error, RequestValidationError) else []
    return JSONResponse({"detail": "; ".join(map(_mistake, mistakes)) + "."}, status_code=422)


def _mistake(mistake: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in mistake["loc"] if part != "body")
    what = str(mistake["msg"]).removeprefix("Value error, ")
    return f"{where}: {what}" if where else what
