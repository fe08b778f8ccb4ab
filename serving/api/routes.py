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

from operators.log.events import SECOND_US
from serving import explorer
from serving.api import cursor, schemas, warm
from serving.api.beside import Beside
from serving.api.errors import PROBLEMS, ApiError, Problem, handle, passes, unavailable
from serving.api.events import event_routes
from serving.api.guard import Guard
from serving.api.items import MISSING, item_routes
from serving.api.metrics import CONTENT_TYPE, Metrics
from serving.api.pictures import small_picture
from serving.api.runs import run_routes
from serving.api.security import BEARER, read_keys
from serving.api.served import Served
from serving.api.work import Work
from serving.query import Answer, Query
from serving.settings import Settings
from serving.stores.base import Impression
from storage.errors import UserError

STALE: dict[int | str, dict[str, Any]] = {409: {"model": Problem, "description": "the cursor is of another run"}}
MOST_SHOWN, SHOWN_TOGETHER = 10_000, 500  # answers that wait for the store, and that are written at once
SHADOW = ":shadow"  # behind the id of an answer, that of the answer nobody saw
MOST_UNSEEN = 64  # queries that wait for the run in the shadow
COUNTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {}}},
    401: PROBLEMS[401],
    403: PROBLEMS[403],
}


def http_api(served: Served, settings: Settings) -> FastAPI:
    """Returns the application over the runs that are served; its start asks them one query of each kind.

    Raises:
        UserError: the keys cannot be read, or there are none and the service is not to be open.
    """
    keys, work = read_keys(settings), Work(served, settings)
    ready: bool | None = None  # not known yet
    metrics = Metrics(lambda: served.names, lambda: work.under_way)
    kept = Kept(served, settings, metrics)

    async def ask_first() -> None:
        nonlocal ready
        failed = (await work.ask(warm.warm_up, served)).values()
        ready = None if any(map(passes, failed)) else all(isinstance(error, UserError) for error in failed)

    async def ask_again() -> None:
        while ready is None:
            await asyncio.sleep(warm.PAUSE_S)
            await ask_first()

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        kept.start()
        await ask_first()
        again = asyncio.create_task(ask_again())
        await asyncio.to_thread(served.start)
        yield
        again.cancel()
        work.close()
        await asyncio.to_thread(kept.close)
        await asyncio.to_thread(served.close)

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
    api.include_router(query_routes(served, settings, work, metrics, kept))
    api.include_router(event_routes(served, settings, work, metrics))
    api.include_router(item_routes(served, settings, work, metrics))
    api.include_router(catalogue_routes(served, work))
    api.include_router(run_routes(served, work))

    @api.get("/healthz")
    async def healthz() -> schemas.Alive:
        """Whether the process answers."""
        return schemas.Alive()

    @api.get("/readyz", responses={503: PROBLEMS[503]}, response_model_exclude_none=True)
    def readyz() -> schemas.Ready:
        """Whether the service has answered one query of each kind, and over what."""
        if not ready:
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


class Kept:
    """Answers that are written beside the requests: those that were given, and those of a run in the shadow."""

    def __init__(self, served: Served, settings: Settings, metrics: Metrics) -> None:
        self._served, self._metrics, self._keeps = served, metrics, settings.impressions
        self._shown = Beside("answers", served.show, metrics.lost, most=MOST_SHOWN, together=SHOWN_TOGETHER)
        self._unseen = Beside(
            "shadow", self._answer_unseen, metrics.unasked, most=MOST_UNSEEN, together=settings.max_batch
        )

    def start(self) -> None:
        """Starts its threads."""
        self._shown.start()
        self._unseen.start()

    def close(self) -> None:
        """Writes what waits, and ends."""
        self._unseen.close()
        self._shown.close()

    def put(self, answer: Answer, user_id: str | None, recommendation_id: str, route: str) -> None:
        """Keeps an answer that is given."""
        if self._keeps:
            self._shown.put(as_impression(answer, user_id, recommendation_id, route))

    def shadow(self, query: Query, answer: Answer) -> None:
        """Lets the run in the shadow, if there is one, answer a query that was answered."""
        if self._served.shadowed:
            self._unseen.put((query, answer, int(time.time() * SECOND_US)))

    def _answer_unseen(self, asked: Sequence[tuple[Query, Answer, int]]) -> None:
        answers = self._served.shadow([query for query, _, _ in asked])
        for (query, shown, at), answer in zip(asked, answers, strict=False):  # none, where it has just gone
            self._metrics.shadow(shown, answer)
            unseen = as_impression(answer, query.user_id, f"{query.draw}{SHADOW}", "/v1/recommend")
            if self._keeps:
                self._shown.put(unseen._replace(shown=False, time=at))


def query_routes(served: Served, settings: Settings, work: Work, metrics: Metrics, kept: Kept) -> APIRouter:
    """Returns the routes that answer with items."""
    routes = APIRouter(prefix="/v1", dependencies=[Security(BEARER)], responses=PROBLEMS)

    def parts(
        request: Request, answer: Answer, user_id: str | None = None, recommendation_id: str | None = None
    ) -> dict[str, Any]:
        route, recommendation_id = request.scope["route"].path, recommendation_id or str(uuid.uuid4())
        request.state.recommendation_id, request.state.run = recommendation_id, answer.run
        metrics.answer(route, answer)
        kept.put(answer, user_id, recommendation_id, route)
        return {
            "recommendation_id": recommendation_id,
            "run": answer.run,
            "items": answer.items,
            "source": answer.source,
            "unknown": answer.unknown,
        }

    @routes.post("/recommend", responses=STALE)
    async def recommend(body: schemas.RecommendRequest, request: Request) -> schemas.Page:
        """Returns the k items that this user would most probably like."""
        of = served.answering(body.user_id)
        check_names(body.recommenders, of.recommenders)
        given = cursor.read(body.cursor, of.run) if body.cursor is not None else []
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
        kept.shadow(query, answer)
        given += [item.item_id for item in answer.items]
        next_one = cursor.write(answer.run, given) if answer.items else None  # a short page need not be the last one
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


def as_impression(answer: Answer, user_id: str | None, recommendation_id: str, route: str) -> Impression:
    """Returns an answer as it is kept."""
    return Impression(
        user_id,
        recommendation_id,
        int(time.time() * SECOND_US),
        answer.run,
        route,
        [item.item_id for item in answer.items],
        [item.score for item in answer.items],
        [item.recommenders for item in answer.items],
        [item.propensity for item in answer.items],
        answer.since,
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
