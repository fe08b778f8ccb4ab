"""The Ray Serve application over finished runs; `serving.deployments.service:application` in a Serve configuration."""

from __future__ import annotations

from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve import Application
from ray.serve.config import BackpressureConfig
from ray.serve.handle import DeploymentHandle

from models.common.recommender import Recommender
from serving.api.errors import RETRY_AFTER
from serving.api.logs import to_stderr
from serving.api.routes import http_api
from serving.cascade import language_models
from serving.deployments.language_model import LanguageModel, Remote
from serving.pipeline import Pipeline
from serving.runs.opening import open_run
from serving.runs.side_by_side import Runs
from serving.settings import Settings, serve_options
from serving.stores.opening import open_store
from storage.errors import UserError
from storage.run import RunDir

LOAD_S = 1_800.0  # that the language models of a run may take to load
REFUSALS = 32  # requests that a full replica takes beside those under way, to refuse them in words


@serve.deployment(max_constructor_retry_count=2)
@serve.ingress()
class Service:
    """One replica: the runs that are served in memory, but for their language models, and the HTTP routes over them."""

    def __init__(self, settings: Settings, language_models: DeploymentHandle | None = None) -> None:
        """Takes the settings, and the deployment that has the language models of runs; else they are loaded here."""
        torch.set_num_threads(settings.threads)
        to_stderr()
        self.settings, self.language_models, self.store = settings, language_models, open_store(settings.store)
        self.runs = Runs(self.store, settings.run, self.opened, self.prepared)

    def opened(self, run: str) -> Pipeline:
        """Loads a run.

        Raises:
            UserError: it cannot be served.
        """
        remote: dict[str, Recommender] = {}
        if (others := self.language_models) is not None:
            names, seconds = language_models(RunDir(run)), self.settings.timeout_seconds
            remote = {name: Remote(run, name, others, seconds) for name in names}
        given = self.settings.model_dump(include={"candidates", "rules"})
        return open_run(run, self.store, fitted=remote, **given)

    def prepared(self, run: str) -> None:
        """Has the language models of a run that is to be served loaded by those who have these.

        Raises:
            UserError: one is missing or damaged.
        """
        if self.language_models is not None:
            try:
                self.language_models.broadcast("prepare", run).results(timeout_s=LOAD_S)
            except RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from error
                raise

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve asks for the routes once the replica has loaded, and sends requests once these are warm."""
        return http_api(self.runs, self.settings)


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
    if not language_models(RunDir(settings.run)):
        return bounded.bind(settings)
    searching = LanguageModel.options(  # type: ignore[attr-defined]
        max_ongoing_requests=settings.max_in_flight + settings.max_batch, **serve_options(settings.language_model)
    )
    return bounded.bind(settings, searching.bind(settings))
