"""A service of forty drawn items behind the explorer: the routes and answers of the real one, without a model.

`python -m tests.serving.explorer.fake` serves it on port 8002, to look at the page.
"""

from __future__ import annotations

import base64
import io
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image

from models.semantic_ids.suffixes import sid_string
from serving.api.metrics import CONTENT_TYPE, Metrics
from serving.explorer import mount
from serving.runs.rates import Rate, difference, rate
from serving.stores.base import Tally
from workflows.catalogs.synthetic.drawing import CATEGORIES, COLOURS, MATERIALS, PATTERNS, Look, draw_photo
from workflows.catalogs.synthetic.wording import PATTERN_WORDS, write_description, write_title

HOSTILE = "<img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script>"
HOSTILE_ID = "p/39?&#\"'<b>"
NO_PICTURE = "p-07"
BROKEN = "broken"  # a user, and words, for which the service fails
RUN = "demo-2f81"
ROLES = ("read", "write", "admin")
RECOMMENDERS = ("sasrec", "content", "popularity")
METRICS = {
    "sasrec": (0.1184, 0.2031, 0.41),
    "language_model+sasrec": (0.1213, 0.2062, 0.38),
    "product_codes": (0.1109, 0.1957, 0.52),
    "content": (0.0712, 0.1309, 0.83),
    "popularity": (0.0341, 0.0688, 0.02),
}


class RefusalError(Exception):
    """A request that the service answers with an error."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.problem = status, {"code": code, "message": message, "request_id": "req-7f3a"}


def served(run: str, share: float, answers: int, acted: int, first: Rate | None = None, **more: Any) -> dict[str, Any]:
    """A run that is served, whose users had two answers each, alike as such answers are."""
    users = max(answers // 2, 1)
    tally = Tally(users, answers, acted, 4 * users, 2 * acted, acted + acted // 2)
    found = rate(tally)
    beside = difference(first, found)._asdict() if first and found else None
    counts = {"items": 40, "users": users, "answers": answers, "acted": acted, "difference": beside}
    return {"run": run, "share": share, "shadow": False, **counts, "rate": found and found._asdict(), **more}


class Shop:
    """The items, the pictures and codes that belong to them, and what users have said of them.

    Attributes:
        keys: the role of each key; with any, who has none is refused.
        events: by user and id of the event: the item, the type, and the answer that it names.
    """

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}
        self.runs = [served(RUN, 1.0, 4_000, 312)]
        self.log = {"anna": ["p-00", "p-10", "p-22"]}
        self.events: dict[tuple[str, str], tuple[str, str, str | None]] = {}
        self.metrics = Metrics(lambda: [RUN], lambda: 1)
        random = np.random.default_rng(3)
        self.items: dict[str, dict[str, Any]] = {}
        self.pictures: dict[str, bytes] = {}
        self.codes: dict[str, list[int]] = {}
        for number in range(40):
            look = Look(
                CATEGORIES[number % 4 + 4 * (number % 3 == 0)],
                tuple(COLOURS)[number * 7 % len(COLOURS)],
                PATTERNS[number % len(PATTERNS)],
                MATERIALS[number % len(MATERIALS)],
                number % 3,
            )
            looks = asdict(look)
            item_id = HOSTILE_ID if number == 39 else f"p-{number:02}"
            surface = PATTERN_WORDS[look.pattern]
            brand = ("Alder", "Hollis", "Farrow", "Juniper")[number % 4]
            title = write_title(looks, descriptive=number % 2 == 0, brand=brand, rng=random)
            self.codes[item_id] = [
                3 + 61 * CATEGORIES.index(look.category),
                7 + 23 * tuple(COLOURS).index(look.colour),
                1 + 40 * PATTERNS.index(look.pattern),
            ]
            self.items[item_id] = {
                "item_id": item_id,
                "title": HOSTILE if number == 39 else None if number == 11 else title,
                "description": write_description(looks, descriptive=True, rng=random),
                "caption": f"A {look.material} {look.colour} {look.category} with {surface} surface",
                "interests": [f"{look.colour} things", f"{look.category}s to give"],
                "sid": sid_string(self.codes[item_id]),
                "attributes": {"brand": [brand], "colour": [look.colour], "price": [f"{9 + number % 30}.90"]},
                "media": [{"uri": f"media/{number}.jpg", "kind": "image"}],
                "hidden": False,
            }
            if item_id != NO_PICTURE:
                self.pictures[item_id] = draw_photo(look, np.random.default_rng(number), "fill")

    def likeness(self, one: str, other: str) -> float:
        """How like two items are, from 0 to 1."""
        same = [mine == theirs for mine, theirs in zip(self.codes[one], self.codes[other], strict=True)]
        return 0.1 + 0.4 * same[0] + 0.3 * same[1] + 0.15 * same[2]

    def scored(self, item_id: str, score: float, liked: list[str], *, explain: bool) -> dict[str, Any]:
        """An item as it stands in an answer."""
        item = self.items[item_id]
        answer = {key: item[key] for key in ("item_id", "title", "caption", "sid")}
        number = list(self.items).index(item_id)
        why = self.why(item_id, liked) if explain else None
        found = [name for at, name in enumerate(RECOMMENDERS) if (number + at) % 3]
        probability = round(score * 0.4, 4) if liked else None
        return {**answer, "score": score, "probability": probability, "recommenders": found, "why": why}

    def why(self, item_id: str, liked: list[str]) -> dict[str, Any]:
        """What an item shares with the nearest of a history."""
        if not liked:
            return {"nearest": None, "similarity": None, "shared_sid": "", "words": [], "interests": []}
        near = max(liked, key=lambda other: self.likeness(item_id, other))
        pairs = list(zip(self.codes[item_id], self.codes[near], strict=True))
        levels = next((level for level, (mine, theirs) in enumerate(pairs) if mine != theirs), len(pairs))
        one, other = self.items[item_id], self.items[near]
        words = [word for word in one["caption"].lower().split() if len(word) > 4 and word in other["caption"].lower()]
        return {
            "nearest": near,
            "similarity": self.likeness(item_id, near),
            "shared_sid": sid_string(self.codes[item_id][:levels]),
            "words": words,
            "interests": [name for name in one["interests"] if name in other["interests"]],
        }

    def recommend(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request for recommendations; a cursor is the place where the next page begins."""
        if body.get("user_id") == BROKEN:
            raise RefusalError(503, "overloaded", "The service has too much to do: try again in a second.")
        user = body.get("user_id", "")
        verdicts = {item: kind for (who, _), (item, kind, _) in self.events.items() if who == user}
        liked = [*self.log.get(user, body.get("history", [])), *(one for one in verdicts if verdicts[one] == "like")]
        disliked = [item_id for item_id in verdicts if verdicts[item_id] == "dislike"]
        known = [item_id for item_id in liked if item_id in self.items and item_id not in disliked]
        negative = [item_id for item_id in [*body.get("negative", []), *disliked] if item_id in self.items]
        out = {*known, *disliked, *body.get("exclude", [])}
        wanted = set(body.get("recommenders", RECOMMENDERS))

        def score(item_id: str) -> float:
            near = max((self.likeness(item_id, other) for other in known), default=0.5)
            far = max((self.likeness(item_id, other) for other in negative), default=0)
            return round(max(near - 0.8 * far, 0) * (0.96 - list(self.items).index(item_id) / 300), 4)

        explain = body.get("explain", False)
        ranked = [self.scored(item_id, score(item_id), known, explain=explain) for item_id in self.items]
        ranked = [item for item in ranked if item["item_id"] not in out and wanted & set(item["recommenders"])]
        ranked = [item for item in ranked if self.has(item["item_id"], body.get("where"))]
        ranked = [item for item in ranked if not self.items[item["item_id"]]["hidden"]]
        ranked.sort(key=lambda item: -item["score"])
        start = int(body.get("cursor", 0))
        end = start + body["k"]
        return {
            "items": ranked[start:end],
            "source": "history" if known else "popularity",
            "unknown": [item_id for item_id in liked if item_id not in self.items],
            "cursor": str(end) if end < len(ranked) else None,
            "recommendation_id": "01J9ZC7",
            "run": RUN,
        }

    def keep(self, event: dict[str, Any]) -> dict[str, Any]:
        """Keeps an event once."""
        key = event["user_id"], event["event_id"]
        new = key not in self.events
        self.events.setdefault(key, (event["item_id"], event["type"], event.get("recommendation_id")))
        self.metrics.events([event["type"]])
        return {"added": int(new), "known": int(not new), "unknown": []}

    def forget(self, user: str) -> None:
        """Erases a user."""
        self.log.pop(user, None)
        self.events = {key: event for key, event in self.events.items() if key[0] != user}

    def similar(self, body: dict[str, Any]) -> dict[str, Any]:
        """Items like others, or like a picture, of which the mean colour counts."""
        if "picture" in body:
            colour = mean_colour(base64.b64decode(body["picture"]))
            near = {key: 1 - math.dist(mean_colour(jpeg), colour) / 442 for key, jpeg in self.pictures.items()}
        else:
            others = [other for other in self.items if other not in body["items"]]
            near = {other: max(self.likeness(item, other) for item in body["items"]) for other in others}
        best = sorted((each for each in near if not self.items[each]["hidden"]), key=lambda each: -near[each])
        best = best[: body["k"]]
        answer: dict[str, Any] = {"items": [self.scored(item_id, near[item_id], [], explain=False) for item_id in best]}
        if "picture" in body:
            answer["seen"] = {key: self.items[best[0]][key] for key in ("caption", "sid")}
        return answer

    def post(self, body: dict[str, Any]) -> dict[str, Any]:
        """Takes an item that looks like the one whose picture is nearest."""
        new = body["item_id"]
        if new in self.items:
            raise RefusalError(409, "taken", f"There is an item {new!r} already: choose another item_id.")
        near = self.similar({"picture": body["picture"], "k": 1})["items"][0]["item_id"]
        self.pictures[new] = base64.b64decode(body["picture"])
        self.codes[new] = self.codes[near]
        own = {"item_id": new, "title": body.get("title"), "description": None, "sid": sid_string(self.codes[new])}
        self.items[new] = {**self.items[near], **own, "attributes": {}, "media": []}
        return self.items[new]

    def has(self, item_id: str, where: dict[str, Any] | None) -> bool:
        """Whether an item has one of the values of each condition."""
        own = self.items[item_id]["attributes"]
        return all(set(part["in"]) & set(own[part["attribute"]]) for part in (where or {"all": []})["all"])

    def attributes(self) -> dict[str, dict[str, int]]:
        """The values of attributes, and how many items have each."""
        every = [item["attributes"] for item in self.items.values()]
        return {
            name: dict(Counter(own[name][0] for own in every if name in own).most_common())
            for name in ("brand", "colour")
        }

    def search(self, text: str, k: int, where: dict[str, Any] | None) -> dict[str, Any]:
        """Items by how many of the words their title and caption have."""
        if text == BROKEN:
            raise RefusalError(422, "invalid", "text: a search has at most 200 letters.")
        words = text.lower().split()
        hits = {
            item_id: sum(word in f"{item['title'] or ''} {item['caption']}".lower() for word in words) / len(words)
            for item_id, item in self.items.items()
        }
        best = sorted(
            (item_id for item_id in hits if hits[item_id] and self.has(item_id, where)),
            key=lambda item_id: -hits[item_id],
        )[:k]
        return {"items": [self.scored(item_id, hits[item_id], [], explain=False) for item_id in best]}

    def tree(self, prefix: list[int]) -> dict[str, Any]:
        """What stands directly under a prefix of codes."""
        children: dict[int, list[str]] = {}
        for item_id, codes in self.codes.items():
            if codes[: len(prefix)] == prefix and len(codes) > len(prefix):
                children.setdefault(codes[len(prefix)], []).append(item_id)
        found = [{"code": code, "items": len(ids), "examples": ids[:8]} for code, ids in sorted(children.items())]
        return {"codes": found}


def mean_colour(picture: bytes) -> list[float]:
    """Red, green and blue of a picture, from 0 to 255."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB").resize((1, 1)))[0, 0].astype(float).tolist()


def api(shop: Shop) -> FastAPI:
    """The routes over the items."""
    app = FastAPI()

    @app.middleware("http")
    async def keys(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        path, began = request.url.path, time.perf_counter()
        role = shop.keys.get(request.headers.get("Authorization", "").removeprefix("Bearer "))
        needed = (
            "admin"
            if path == "/metrics" or request.method == "DELETE"
            else "write"
            if path in ("/v1/events", "/v1/items") or request.method == "PATCH"
            else "read"
        )
        if (
            shop.keys
            and (path == "/metrics" or "/v1/" in path)
            and (not role or ROLES.index(role) < ROLES.index(needed))
        ):
            status, code = (403, "forbidden") if role else (401, "unauthorized")
            message = f"{path} needs a key with the role {needed}." if role else "This needs a key."
            return JSONResponse({"error": {"code": code, "message": message, "request_id": "req-7f3a"}}, status)
        answer = await call_next(request)
        route = getattr(request.scope.get("route"), "path", "none")
        shop.metrics.request(route, request.method, answer.status_code, time.perf_counter() - began)
        return answer

    @app.exception_handler(RefusalError)
    async def refused(_: Request, error: RefusalError) -> JSONResponse:
        return JSONResponse({"error": error.problem}, error.status)

    @app.post("/v1/recommend")
    async def recommend(request: Request) -> dict[str, Any]:
        return shop.recommend(await request.json())

    @app.post("/v1/similar")
    async def similar(request: Request) -> dict[str, Any]:
        return shop.similar(await request.json())

    @app.post("/v1/search")
    async def search(request: Request) -> dict[str, Any]:
        body = await request.json()
        return shop.search(body["text"], body["k"], body.get("where"))

    @app.post("/v1/events")
    async def event(request: Request) -> dict[str, Any]:
        return shop.keep(await request.json())

    @app.delete("/v1/users/{user_id:path}")
    async def forget(user_id: str) -> dict[str, bool]:
        shop.forget(user_id)
        return {"forgotten": True}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(shop.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    @app.get("/v1/attributes")
    async def attributes() -> dict[str, Any]:
        return {"run": RUN, "attributes": shop.attributes()}

    @app.get("/v1/tree")
    async def tree(prefix: Annotated[list[int], Query()] = []) -> dict[str, Any]:  # noqa: B006 - as FastAPI wants it
        return shop.tree(prefix)

    @app.get("/v1/runs")
    async def runs() -> dict[str, Any]:
        return {"runs": shop.runs, "since": 1.79e9, "replicas": {"alive": 2, "serving": 2}, "warning": None}

    @app.get("/v1/quality")
    async def quality() -> dict[str, Any]:
        def row(ndcg: float, recall: float, coverage: float) -> dict[str, Any]:
            given = {"ndcg@10": ndcg, "recall@10": recall}
            intervals = {f"{name}_interval": [value * 0.93, value * 1.07] for name, value in given.items()}
            return {**given, **intervals, "coverage@10": coverage}

        metrics = {name: row(*values) for name, values in METRICS.items()}
        return {"run": RUN, "metrics": metrics, "counts": {"items": 40, "users": 2041}}

    @app.post("/v1/items")
    async def post(request: Request) -> dict[str, Any]:
        return shop.post(await request.json())

    @app.patch("/v1/items/{item_id:path}")
    async def change(item_id: str, request: Request) -> dict[str, Any]:
        shop.items[item_id]["hidden"] = (await request.json())["hidden"]
        return shop.items[item_id]

    @app.get("/v1/items/{item_id:path}/picture")
    async def picture(item_id: str) -> Response:
        if item_id not in shop.pictures:
            raise RefusalError(404, "not_found", f"The item {item_id!r} has no picture.")
        return Response(shop.pictures[item_id], media_type="image/jpeg")

    @app.get("/v1/items/{item_id:path}")
    async def item(item_id: str) -> dict[str, Any]:
        if item_id not in shop.items:
            raise RefusalError(404, "not_found", f"There is no item {item_id!r} in this catalogue.")
        return shop.items[item_id]

    mount(app)
    return app


if __name__ == "__main__":
    uvicorn.run(api(Shop()), port=8002)
