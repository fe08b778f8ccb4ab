"""The Ray Serve application over a finished run; `serving.deployments.service:application` in a Serve configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig
from ray.serve.handle import DeploymentHandle

from serving.api.logs import to_stderr
from serving.api.routes import http_api
from serving.api.work import RETRY_AFTER
from serving.cascade import language_models
from serving.deployments.language_model import LanguageModel, Remote
from serving.pipeline import Pipeline
from serving.settings import Settings, serve_options
from serving.stores.opening import open_store
from storage.run import RunDir

REFUSALS = 32  # requests that a full replica takes beside those under way, to refuse them in words


@serve.deployment(max_constructor_retry_count=2)
@serve.ingress()
class Service:
    """One replica: the run in memory but for its language model, and the HTTP routes over it."""

    def __init__(
        self, settings: Settings, names: Sequence[str] = (), language_model: DeploymentHandle | None = None
    ) -> None:
        """Takes the settings, and the deployment that has the recommenders of these names."""
        torch.set_num_threads(settings.threads)
        to_stderr()
        self.settings = settings
        remote = {
            name: Remote(name, language_model, settings.timeout_seconds) for name in names if language_model is not None
        }
        run, store = RunDir(settings.run), open_store(settings.store)
        self.pipeline = Pipeline(run, store, candidates=settings.candidates, fitted=remote, rules=settings.rules)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve asks for the routes once the replica has loaded, and sends requests once these are warm."""
        return http_api(self.pipeline, self.settings)


def application(args: dict[str, Any]) -> Application:
    """Builds the application from the `args` of a Serve configuration; their names are those of `Settings`.

    The deployment `LanguageModel` is part of it where the run has a recommender that needs it.

    Raises:
        pydantic.ValidationError: an argument is missing, unknown or out of range.
    """
    settings = Settings.model_validate(args)
    bounded = Service.options(  # type: ignore[attr-defined] # the class is a Deployment now
        max_ongoing_requests=settings.max_in_flight + REFUSALS,
        backpressure_config=BackpressureConfig(retry_after_s=RETRY_AFTER),
        **serve_options(settings.service),
    )
    if not (names := language_models(RunDir(settings.run))):
        return bounded.bind(settings)
    searching = LanguageModel.options(  # type: ignore[attr-defined]
        max_ongoing_requests=settings.max_in_flight + settings.max_batch, **serve_options(settings.language_model)
    )
    return bounded.bind(settings, names, searching.bind(settings, names))
