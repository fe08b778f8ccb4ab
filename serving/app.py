"""The Ray Serve application over a finished run; `serving.app:application` in a Serve configuration."""

from __future__ import annotations

from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from serving.api import http_api
from serving.pipeline import Pipeline, Query, Recommendation
from serving.settings import Settings
from storage.run import RunDir


@serve.deployment(ray_actor_options={"num_cpus": 1}, max_ongoing_requests=64, max_constructor_retry_count=2)
@serve.ingress()
class Service:
    """One replica: the run in memory, and the HTTP routes over it."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        self.pipeline = Pipeline(RunDir(settings.run), candidates=settings.candidates)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve asks for the routes once the replica has loaded."""
        return http_api(self.pipeline, self.recommend)

    # Takes what has come in meanwhile and never waits for more.
    @serve.batch(max_batch_size=4, batch_wait_timeout_s=0.0)
    async def recommend(self, queries: list[Query]) -> list[Recommendation]:
        """Answers queries in one pass of the model."""
        return self.pipeline.recommend(queries)


def application(args: dict[str, Any]) -> Application:
    """Builds the application from the `args` of a Serve configuration; their names are those of `Settings`.

    Raises:
        pydantic.ValidationError: an argument is missing, unknown or out of range.
    """
    return Service.bind(Settings.model_validate(args))  # type: ignore[attr-defined] # the class is a Deployment now
