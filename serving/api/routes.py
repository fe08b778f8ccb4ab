"""The routes of the service."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Request, Response, Security
from fastapi import Query as Parameter
from fastapi.middleware.cors import CORSMiddleware

from serving import explorer
from serving.api import cursor, schemas
from serving.api.errors import PROBLEMS, ApiError, Problem, handle
from serving.api.events import SECOND_US, event_routes
from serving.api.guard import Guard
from serving.api.impressions import Impressions
from serving.api.items import MISSING, item_routes
from serving.api.metrics import CONTENT_TYPE, Metrics
from serving.api.pictures import small_picture
from serving.api.security import BEARER, read_keys
from serving.api.served import Served
from serving.api.warm import warm_up
from serving.api.work import Work, unavailable
from serving.query import Answer, Query
from serving.settings import Settings
from serving.stores.base import Impression

STALE: dict[int | str, dict[str, Any]] = {409: {"model": Problem, "description": "the cursor is of another run"}}
COUNTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {}}},
    401: PROBLEMS[401],
    403: PROBLEMS[403],
}


def http_api(served: Served, settings: Settings) -> FastAPI:
    """Returns the application over a loaded run; its start asks the run one query of each kind.

    Raises:
        UserError: the keys cannot be read, or there are none and the service is not to be open.
    """
    keys, work, warm = read_keys(settings), Work(served, settings), False
    metrics = Metrics(served.run, lambda: work.under_way)
    shown = Impressions(served.show, metrics.lost) if settings.impressions else None

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        nonlocal warm
        if shown is not None:
            shown.start()
        warm = await work.ask(warm_up, served)
        yield
        work.close()
        if shown is not None:
            await asyncio.to_thread(shown.close)

    api = FastAPI(
        title="tesserec",
        description="Recommendations from a finished run.",
        version="1",
        lifespan=life,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,
    )
    handle(api)
    api.add_middleware(Guard, settings=settings, keys=keys, metrics=metrics, work=work)
    if settings.cors_origins:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    api.include_router(query_routes(served, settings, work, metrics, shown))
    api.include_router(event_routes(served, settings, work, metrics))
    api.include_router(item_routes(served, settings, work, metrics))
    api.include_router(catalogue_routes(served, work))

    @api.get("/healthz")
    async def healthz() -> schemas.Alive:
        """Whether the process answers."""
        return schemas.Alive()

    @api.get("/readyz", responses={503: PROBLEMS[503]}, response_model_exclude_none=True)
    def readyz() -> schemas.Ready:
        """Whether the service has answered one query of each kind, and over what."""
        if not warm:
            raise unavailable("not_ready", "The service has not answered its first queries yet.")
        return schemas.Ready(
            run=served.run,
            items=served.items,
            users=served.users,
            recommenders=list(served.recommenders),
            warning=served.warning,
        )

    @api.get("/metrics", response_class=Response, responses=COUNTS)
    async def prometheus() -> Response:
        """Counts of this process for Prometheus; needs the role `admin` where there are keys."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    explorer.mount(api)
    return api


def query_routes(
    served: Served, settings: Settings, work: Work, metrics: Metrics, shown: Impressions | None
) -> APIRouter:
    """Returns the routes that answer with items."""
    routes = APIRouter(prefix="/v1", dependencies=[Security(BEARER)], responses=PROBLEMS)

    def parts(
        request: Request, answer: Answer, user_id: str | None = None, recommendation_id: str | None = None
    ) -> dict[str, Any]:
        route, recommendation_id = request.scope["route"].path, recommendation_id or str(uuid.uuid4())
        request.state.recommendation_id = recommendation_id
        metrics.answer(route, answer)
        if shown is not None:
            shown.put(as_impression(answer, user_id, recommendation_id, served.run, route))
        return {
            "recommendation_id": recommendation_id,
            "run": served.run,
            "items": answer.items,
            "source": answer.source,
            "unknown": answer.unknown,
        }

    @routes.post("/recommend", responses=STALE)
    async def recommend(body: schemas.RecommendRequest, request: Request) -> schemas.Page:
        """Returns the k items that this user would most probably like."""
        check_names(body.recommenders, served.recommenders)
        given = cursor.read(body.cursor, served.run) if body.cursor is not None else []
        query = Query(
            user_id=body.user_id,
            history=body.history,
            k=body.k,
            exclude=(*body.exclude, *given),
            negative=tuple(body.negative),
            where=body.where,
            recommenders=tuple(body.recommenders),
            seen_after=body.seen_after_days,
            explain=body.explain,
            draw=str(uuid.uuid4()),
        )
        answer = await work.recommend(query)
        more = len(answer.items) == body.k
        next_one = cursor.write(served.run, [*given, *(item.item_id for item in answer.items)]) if more else None
        return schemas.Page(**parts(request, answer, body.user_id, query.draw), cursor=next_one)

    @routes.post("/rank")
    async def rank(body: schemas.RankRequest, request: Request) -> schemas.Items:
        """Puts items into the order in which this user would like them."""
        items = list(dict.fromkeys(body.items))
        query = Query(user_id=body.user_id, history=body.history, k=len(items), explain=body.explain)
        return schemas.Items(**parts(request, await work.ask(served.rank, query, items), body.user_id))

    @routes.post("/similar")
    async def similar(body: schemas.SimilarRequest, request: Request) -> schemas.Similar:
        """Returns the k items most like some items, a text or a picture."""
        picture = None if body.picture is None else await work.ask(small_picture, body.picture, settings)
        answer = await work.ask(
            served.similar, items=body.items, text=body.text, picture=picture, k=body.k, where=body.where
        )
        return schemas.Similar(**parts(request, answer), seen=answer.seen)

    @routes.get("/search")
    async def search(
        request: Request, text: Annotated[schemas.Text, Parameter(examples=["striped shirt"])], k: schemas.K = 10
    ) -> schemas.Items:
        """Returns the k items whose texts are nearest to a text."""
        return schemas.Items(**parts(request, await work.ask(served.search, text, k=k, where=None)))

    @routes.post("/search")
    async def search_where(body: schemas.SearchRequest, request: Request) -> schemas.Items:
        """Returns the k items whose texts are nearest to a text, of those that a filter matches."""
        return schemas.Items(**parts(request, await work.ask(served.search, body.text, k=body.k, where=body.where)))

    return routes


def catalogue_routes(served: Served, work: Work) -> APIRouter:
    """Returns the routes that show the catalogue and the run."""
    routes = APIRouter(prefix="/v1", dependencies=[Security(BEARER)], responses=PROBLEMS)

    # Before the item's own route, whose id takes whatever follows.
    @routes.get(
        "/items/{item_id:any}/picture",
        responses={**MISSING, 200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}},
        response_class=Response,
    )
    async def picture(item_id: str) -> Response:
        """Returns a small JPEG of an item's first picture."""
        content = await work.ask(served.picture, item_id)
        if content is None:
            raise ApiError(404, "not_found", f"There is no picture of an item {item_id[:100]!r} in this catalogue.")
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    @routes.get("/items/{item_id:any}", responses=MISSING)
    async def item(item_id: str) -> schemas.Item:
        """Returns one item of the catalogue."""
        fields = await work.ask(served.item, item_id)
        if fields is None:
            raise ApiError(404, "not_found", f"There is no item {item_id[:100]!r} in this catalogue.")
        return schemas.Item(run=served.run, **fields)

    @routes.get("/tree")
    async def tree(prefix: Annotated[schemas.Prefix, Parameter(examples=[[3, 1]])] = []) -> schemas.Tree:  # noqa: B006
        """Returns the codes that follow a prefix of semantic IDs, written `?prefix=3&prefix=1`."""
        return schemas.Tree(run=served.run, prefix=prefix, **await work.ask(served.tree, prefix))

    @routes.get("/attributes")
    async def attributes() -> schemas.Attributes:
        """Returns what items may be filtered by: attributes and their commonest values."""
        return schemas.Attributes(run=served.run, attributes=await work.ask(served.attributes))

    @routes.get("/quality")
    async def quality() -> schemas.Quality:
        """Returns metrics of the run."""
        return schemas.Quality(
            run=served.run,
            metrics=await work.ask(served.quality),
            counts={"items": served.items, "users": served.users},
        )

    return routes


def as_impression(answer: Answer, user_id: str | None, recommendation_id: str, run: str, route: str) -> Impression:
    """Returns an answer as it is kept."""
    return Impression(
        user_id,
        recommendation_id,
        int(time.time() * SECOND_US),
        run,
        route,
        [item.item_id for item in answer.items],
        [item.score for item in answer.items],
        [item.recommenders for item in answer.items],
        [item.propensity for item in answer.items],
    )


def check_names(named: Sequence[str], known: Sequence[str]) -> None:
    """Makes sure that a request names recommenders of the run alone.

    Raises:
        ApiError: it names another.
    """
    for name in named:
        if name not in known:
            choices = ", ".join(known)
            raise ApiError(422, "invalid", f"recommenders: there is no {name[:100]!r}; choose among {choices}.")
