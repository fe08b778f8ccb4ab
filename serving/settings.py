"""The settings of the service, whether a run can be served, and the configuration for a cluster."""

from __future__ import annotations

import math
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from models.common import settings
from models.common.mistakes import explain
from storage import files
from storage.errors import UserError
from storage.manifest import first_unfinished, require_finished

STAGES = ("ingest", "interpret", "project", "quantize")  # the service reads what these wrote,
RANKED, FITTED = ("features", "rank"), ("generate",)  # and what the ones or the other wrote, or both
APPLICATION = "tesserec"
KEYS = "TESSEREC_KEYS"  # environment variable with the keys of the service

# The shape of a request, part of the interface: the OpenAPI document shows it.
MAX_K = 100  # items that one request may ask for
MAX_IDS = 1_000  # ids in one list of a request
MAX_ID = 1_024  # characters of an id
MAX_TEXT = 1_000  # characters of a text that is searched for, of a title, of a value of an attribute
MAX_DESCRIPTION = 20_000  # characters of the description of an item that is posted
MAX_NAMES = 16  # recommenders that one request may name
MAX_LEVELS = 16  # of a prefix of semantic IDs
MAX_CURSOR = 32_768  # characters of a cursor
MAX_EVENTS = 1_000  # events in one request
EVENT_WEIGHTS = {"view": 0.0, "click": 1.0, "like": 1.0, "buy": 1.0, "dwell": 1.0, "dislike": -1.0}


class Deployment(settings.Settings):
    """Resources and scaling of a deployment of Ray Serve.

    Attributes:
        num_cpus, num_gpus: that Ray reserves for a replica.
        min_replicas, max_replicas: between which their number follows the load; fixed where they are equal.
        max_replicas_per_node: of them that one machine runs, so that it takes no more with it; null: any number.
        target_ongoing_requests: requests under way in a replica, above which another one starts.
        max_queued_requests: that wait in front of all replicas; more are refused with status 503.
    """

    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    max_replicas_per_node: int | None = Field(None, ge=1, le=100)
    target_ongoing_requests: float = Field(4.0, gt=0)
    max_queued_requests: int = Field(64, ge=1)

    @model_validator(mode="after")
    def _most_is_not_below_least(self) -> Deployment:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas lies below min_replicas: write {self.min_replicas} or more")
        return self


class Settings(settings.Settings):
    """Arguments of the application, as they stand under `args` in a Ray Serve configuration.

    Attributes:
        run: URI of the run directory, the same from every node.
        candidates: of a query, by all recommenders together.
        store: what is known of users: `sqlite:PATH`, of a local disk, or `redis://HOST:PORT/DATABASE`.
        threads: torch threads of a replica.
        keys: file of `role:sha256` lines, for keys that may ask; by default the environment variable TESSEREC_KEYS.
        open: whether anyone may ask where there are no keys; `tesserec serve` sets it where only this machine can.
        cors_origins: origins whose pages a browser lets ask, such as `https://shop.example`.
        max_body_bytes: of a request.
        max_picture_bytes, max_picture_pixels: of a picture in a request, before it is decoded.
        media_roots: folders and URIs below which pictures of posted items may lie; by default pictures are sent alone.
        max_in_flight: requests under way in one replica; more are refused with status 503.
        max_batch: queries that are answered in one pass of the model.
        workers: threads of a replica that ask the run.
        timeout_seconds: that a request may take, its reading included.
        event_weights: the types of events that may be sent, and the weight of each: above 0 for a like, below 0 for a
            dislike, 0 for what says neither.
        dwell_seconds: the least `value` of an event of the type `dwell` that has its weight; a shorter one has 0.
        impressions: whether answers are kept in the store, so that events can be told from what was shown in vain.
        rules: file of rules for the lists of `recommend`, see `serving.rerank.rules.Rules`.
        service: the deployment with the routes and all of the run but its language model.
        language_model: the deployment with that, where the run has one.
    """

    run: str = Field(min_length=1)
    candidates: int = Field(200, ge=MAX_K)
    store: str = Field(min_length=1)
    threads: int = Field(1, ge=1)
    keys: Annotated[str, Field(min_length=1), AfterValidator(files.absolute)] | None = None
    open: bool = False
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = Field(8 << 20, ge=1_024)
    max_picture_bytes: int = Field(4 << 20, ge=1_024)
    max_picture_pixels: int = Field(25_000_000, ge=1_024)
    media_roots: tuple[str, ...] = ()
    max_in_flight: int = Field(64, ge=1)
    max_batch: int = Field(4, ge=1)
    workers: int = Field(4, ge=1)
    timeout_seconds: float = Field(10.0, gt=0, le=3_600)
    event_weights: dict[str, float] = Field(EVENT_WEIGHTS, min_length=1)
    dwell_seconds: float = Field(30.0, ge=0)
    impressions: bool = True
    rules: Annotated[str, Field(min_length=1), AfterValidator(files.absolute)] | None = None
    service: Deployment = Deployment()
    language_model: Deployment = Deployment()

    @property
    def cpus(self) -> int:
        """CPUs that Ray counts for all replicas, and one for its own work."""
        return 1 + math.ceil(sum(each.num_cpus * each.max_replicas for each in (self.service, self.language_model)))


def read_settings(run: str, path: str | None) -> Settings:
    """Returns the settings for a run: those of a YAML file, where one is given, and the defaults.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown, or a value has the wrong type or is out of range.
    """
    raw = {} if path is None else settings.parse_yaml(settings.read_text(path, "file of the service's settings"), path)
    if not isinstance(raw := raw or {}, dict):
        raise UserError(f"{path} must be a YAML mapping of settings such as `max_in_flight: 64`.")
    if "run" in raw:
        raise UserError(f"{path}: leave run out, since the command names it.")
    if "store" not in raw:
        raw = {**raw, "store": default_store(run)}
    try:
        return Settings.model_validate({**raw, "run": files.absolute(run)})
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, Settings, {})}") from error


def default_store(run: str) -> str:
    """Returns the address of a store in the run's own folder.

    Raises:
        UserError: the run is on no local disk.
    """
    fs, path = files.filesystem(files.absolute(run))
    if "file" not in fs.protocol:
        raise UserError(
            f"{run} is on no local disk, so users need a store of their own: write `store: redis://HOST:PORT/DATABASE` "
            "into the file of --config."
        )
    return f"sqlite:{files.join(path, 'users.db')}"


def check_servable(run: str) -> None:
    """Makes sure that everything the service reads was written to the end.

    Raises:
        UserError: there is no run, it has neither a ranker nor other recommenders, or a stage has not finished.
    """
    ranked = first_unfinished(run, FITTED) is not None
    require_finished(run, (*STAGES, *RANKED) if ranked else STAGES, "cannot be served")


def serve_options(deployment: Deployment) -> dict[str, Any]:
    """Returns what Ray Serve calls these settings, as options of a deployment and in its configuration alike."""
    scale = deployment.model_dump(include={"min_replicas", "max_replicas", "target_ongoing_requests"})
    fixed = deployment.min_replicas == deployment.max_replicas
    return {
        **({"num_replicas": deployment.min_replicas} if fixed else {"autoscaling_config": scale}),
        **({"max_replicas_per_node": most} if (most := deployment.max_replicas_per_node) else {}),
        "max_queued_requests": deployment.max_queued_requests,
        "ray_actor_options": deployment.model_dump(include={"num_cpus", "num_gpus"}),
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},  # the service has lines of its own
    }


def serve_config(settings: Settings, *, language_model: bool) -> str:
    """Returns the YAML that `serve deploy` and the serveConfigV2 of a RayService take.

    Resources and scaling stand where Ray Serve looks for them, under `deployments`; `language_model` says whether the
    run has one.

    The code has to be on the import path of the cluster: in its image, or by a working_dir in `runtime_env`.
    """
    deployed = {"Service": "service", "LanguageModel": "language_model"}  # classes of `serving.deployments`, their key
    config = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": 8000},  # noqa: S104 - a cluster's own network
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": "serving.deployments.service:application",
                "args": settings.model_dump(mode="json", exclude=set(deployed.values())),
                "deployments": [
                    {"name": name, **serve_options(getattr(settings, key))}
                    for name, key in deployed.items()
                    if language_model or key != "language_model"
                ],
            }
        ],
    }
    return yaml.safe_dump(config, sort_keys=False)
