"""The settings of the service, whether a run can be served, and the configuration for a cluster."""

from __future__ import annotations

from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field

from storage import files
from storage.manifest import require_finished

STAGES = ("ingest", "interpret", "project", "quantize", "features", "rank")  # the service reads what these wrote
APPLICATION = "tesserec"
MAX_K = 100  # items that one request may ask for


class Settings(BaseModel):
    """Arguments of the application, as they stand under `args` in a Ray Serve configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: Annotated[str, Field(min_length=1, description="URI of the run directory, the same from every node")]
    candidates: Annotated[int, Field(ge=MAX_K, description="candidates that content hands to the ranker")] = 200
    threads: Annotated[int, Field(ge=1, description="torch threads of a replica")] = 1


def check_servable(run: str) -> None:
    """Makes sure that everything the service reads was written to the end.

    Raises:
        UserError: there is no run, it has no ranker, or a stage has not finished.
    """
    require_finished(run, STAGES, "cannot be served")


def serve_config(run: str) -> str:
    """Returns the YAML that `serve deploy` and the serveConfigV2 of a RayService take.

    The code has to be on the import path of the cluster: in its image, or by a working_dir in `runtime_env`.
    """
    config = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": 8000},  # noqa: S104 - a cluster's own network
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": "serving.app:application",
                "args": Settings(run=files.absolute(run)).model_dump(),
                "deployments": [
                    {
                        "name": "Service",
                        "autoscaling_config": {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 4},
                        "ray_actor_options": {"num_cpus": 1},
                    }
                ],
            }
        ],
    }
    return yaml.safe_dump(config, sort_keys=False)
