"""The Ray Serve application over a finished run; `serving.deployments.service:application` in a Serve configuration."""

from __future__ import annotations

from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig

from serving.api.logs import to_stderr
from serving.api.routes import http_api
from serving.api.work import RETRY_AFTER
from serving.pipeline import Pipeline
from serving.settings import Settings
from serving.stores.opening import open_store
from storage.run import RunDir

REFUSALS = 32  # requests that a full replica takes beside those under way, to refuse them in words


@serve.deployment(ray_actor_options={"num_cpus": 1}, max_constructor_retry_count=2)
@serve.ingress()
class Service:
    """One replica: the run in memory, and the HTTP routes over it."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        to_stderr()
        self.settings = settings
        self.pipeline = Pipeline(RunDir(settings.run), open_store(settings.store), candidates=settings.candidates)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve asks for the routes once the replica has loaded, and sends requests once these are warm."""
        return http_api(self.pipeline, self.settings)


def application(args: dict[str, Any]) -> Application:
    """Builds the application from the `args` of a Serve configuration; their names are those of `Settings`.

    Raises:
        pydantic.ValidationError: an argument is missing, unknown or out of range.
    """
    settings = Settings.model_validate(args)
    bounded = Service.options(  # type: ignore[attr-defined] # the class is a Deployment now
        max_ongoing_requests=settings.max_in_flight + REFUSALS,
        max_queued_requests=settings.max_in_flight,
        backpressure_config=BackpressureConfig(retry_after_s=RETRY_AFTER),
    )
    return bounded.bind(settings)
