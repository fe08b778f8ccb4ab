"""The routes that take new items, change them and remove them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Security

from serving.api import schemas
from serving.api.errors import PROBLEMS, Problem
from serving.api.metrics import Metrics
from serving.api.pictures import picture_at, small_picture
from serving.api.security import BEARER
from serving.api.served import Served
from serving.api.work import Work
from serving.query import NewItem
from serving.settings import Settings

MISSING: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "there is no such item"}}
TAKEN: dict[int | str, dict[str, Any]] = {
    409: {"model": Problem, "description": "there is such an item, or it has changed"}
}


def item_routes(served: Served, settings: Settings, work: Work, metrics: Metrics) -> APIRouter:
    """Returns the routes that write items."""
    routes = APIRouter(prefix="/v1/items", dependencies=[Security(BEARER)], responses=PROBLEMS)

    async def fields(body: schemas.ItemChanges) -> dict[str, Any]:
        """Returns what was sent, its picture as a small file."""
        given = body.model_dump(exclude_unset=True, exclude={"picture", "uri"})
        if body.picture is not None:
            given["picture"] = await work.ask(small_picture, body.picture, settings)
        elif body.uri is not None:
            given["picture"] = await work.ask(picture_at, body.uri, settings)
        return given

    @routes.post("", responses=TAKEN)
    async def post(body: schemas.NewItem) -> schemas.Item:
        """Takes an item, which gets a caption, an embedding and a semantic ID, and may be in the next answer."""
        item = await work.ask(served.post_item, NewItem(**await fields(body)))
        metrics.item("posted")
        return schemas.Item(run=served.run, **item)

    @routes.patch("/{item_id:any}", responses={**MISSING, **TAKEN})
    async def change(item_id: str, body: schemas.ItemChanges) -> schemas.Item:
        """Changes what is sent of an item; of one of the run's own only whether it is hidden."""
        item = await work.ask(served.change_item, item_id, await fields(body))
        metrics.item("changed")
        return schemas.Item(run=served.run, **item)

    @routes.delete("/{item_id:any}", responses=MISSING)
    async def delete(item_id: str) -> schemas.Deleted:
        """Removes an item; one of the run's own stays away until a run without it."""
        await work.ask(served.delete_item, item_id)
        metrics.item("deleted")
        return schemas.Deleted()

    return routes
