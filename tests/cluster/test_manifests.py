"""The manifests name things that exist."""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serving.settings import Settings
from workflows.engine.definition import load

REPOSITORY = Path(__file__).parents[2]
CLUSTER = REPOSITORY / "cluster"


def spec(name: str) -> dict:
    return yaml.safe_load((CLUSTER / name).read_text())["spec"]


def test_the_service_imports_an_application_and_its_arguments_are_valid():
    config = ServeDeploySchema.model_validate(yaml.safe_load(spec("rayservice.yaml")["serveConfigV2"]))
    for application in config.applications:
        module, name = application.import_path.split(":")
        assert callable(getattr(importlib.import_module(module), name))
        Settings.model_validate(application.args)


def test_the_job_runs_a_definition_of_the_repository():
    words = shlex.split(spec("rayjob.yaml")["entrypoint"])
    assert words[:4] == ["python", "-m", "workflows", "run"]
    load(str(REPOSITORY / words[4]), [words[words.index("--set") + 1]])


@pytest.mark.parametrize(("name", "key"), [("rayjob.yaml", "rayClusterSpec"), ("rayservice.yaml", "rayClusterConfig")])
def test_every_node_runs_the_pinned_ray_from_one_image(name, key):
    lock = (REPOSITORY / "requirements" / "cpu.txt").read_text().splitlines()
    cluster = spec(name)[key]
    assert f"ray=={cluster['rayVersion']}" in lock
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {container["image"] for group in groups for container in group["template"]["spec"]["containers"]}
    assert len(images) == 1
    assert f"rayproject/ray:{cluster['rayVersion']}-py311-cpu" in (CLUSTER / "Dockerfile").read_text()
