"""The routes that learn what users do, and forget it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Path, Security

from operators.log.events import SECOND_US
from serving.api import schemas
from serving.api.errors import PROBLEMS, ApiError
from serving.api.metrics import Metrics
from serving.api.security import BEARER
from serving.api.served import Served
from serving.api.work import Work
from serving.settings import Settings
from serving.stores.base import Event

AHEAD_S = 60  # that a client's clock may be


def event_routes(served: Served, settings: Settings, work: Work, metrics: Metrics) -> APIRouter:
    """Returns the routes for events and for the erasure of users."""
    routes = APIRouter(prefix="/v1", dependencies=[Security(BEARER)], responses=PROBLEMS)

    async def keep(bodies: Sequence[schemas.Event]) -> schemas.Kept:
        events = [as_event(body, settings) for body in bodies]
        added, unknown = await work.ask(served.add, events)
        metrics.events([event.kind for event in events])
        return schemas.Kept(added=added, known=len(events) - added, unknown=unknown)

    @routes.post("/events")
    async def event(body: schemas.Event) -> schemas.Kept:
        """Keeps an event; the next request of its user knows of it."""
        return await keep([body])

    @routes.post("/events/batch")
    async def events(body: schemas.Events) -> schemas.Kept:
        """Keeps events, all or none."""
        return await keep(body.events)

    @routes.delete("/users/{user_id:any}")
    async def forget(user_id: Annotated[str, Path(min_length=1)]) -> schemas.Forgotten:
        """Removes all that the store has of a user; a run that is loaded later does not bring it back."""
        await work.ask(served.forget, user_id)
        return schemas.Forgotten()

    return routes


def as_event(body: schemas.Event, settings: Settings) -> Event:
    """Returns an event as it is kept.

    Raises:
        ApiError: its type has no weight, or it is of the future.
    """
    if body.type not in settings.event_weights:
        choices = ", ".join(settings.event_weights)
        raise ApiError(422, "invalid", f"type: there is no {body.type[:100]!r}; choose among {choices}.")
    now = time.time()
    at = now if body.timestamp is None else body.timestamp.timestamp()
    if at > now + AHEAD_S:
        raise ApiError(422, "invalid", "timestamp: it lies in the future; send the time of the event.")
    short = body.type == "dwell" and (body.value or 0.0) < settings.dwell_seconds
    weight = 0.0 if short else settings.event_weights[body.type]
    given = body.event_id or uuid.uuid4().hex
    time_us, now_us = int(at * SECOND_US), int(now * SECOND_US)
    return Event(body.user_id, given, body.item_id, body.type, weight, time_us, body.recommendation_id, now_us)
