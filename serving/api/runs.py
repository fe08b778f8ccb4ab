"""The route that tells which runs are served, and how users act on the answers of each."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Security
from pydantic import BaseModel, ConfigDict

from serving.api.errors import PROBLEMS
from serving.api.schemas import RUN
from serving.api.security import BEARER
from serving.api.served import Served
from serving.api.work import Work

EXAMPLE: dict[str, Any] = {
    "runs": [
        {"run": RUN, "share": 0.9, "shadow": False, "items": 800, "users": 90, "answers": 300, "acted": 30}
        | {"rate": {"value": 0.1, "low": 0.068, "high": 0.144}, "difference": None},
    ],
    "since": 1_790_000_000.0,
    "replicas": {"alive": 2, "serving": 2},
    "warning": None,
}


class Rate(BaseModel):
    """A share, or a difference of two, and its interval of 95 %."""

    value: float
    low: float
    high: float


class ServedRun(BaseModel):
    """A run that is served, and what users did with its answers since the runs are served as they are.

    Attributes:
        run: its name and fingerprint.
        share: of the users whom it answers.
        shadow: whether it answers in the shadow of the first run: kept, and not shown.
        items: that may be in an answer.
        users, answers, acted: users who had an answer, these answers, and those that a weighted event names.
        rate: `acted` of `answers`; null without answers.
        difference: of the rate from the first run's.
    """

    run: str
    share: float
    shadow: bool
    items: int
    users: int
    answers: int
    acted: int
    rate: Rate | None
    difference: Rate | None


class Replicas(BaseModel):
    """How many replicas have told of themselves lately, and how many of these serve what is to be served."""

    alive: int
    serving: int


class Runs(BaseModel):
    """The runs that are served, the first one first; since when, in seconds since 1970; what is wrong, if anything."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    runs: list[ServedRun]
    since: float
    replicas: Replicas
    warning: str | None


def run_routes(served: Served, work: Work) -> APIRouter:
    """Returns the route."""
    routes = APIRouter(prefix="/v1", dependencies=[Security(BEARER)], responses=PROBLEMS)

    @routes.get("/runs")
    async def runs() -> Runs:
        """Returns the runs that are served, and how users act on the answers of each."""
        return Runs(**await work.ask(served.state))

    return routes
