from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from serving.app import application
from serving.settings import STAGES, Settings, check_servable, serve_config
from storage.errors import UserError
from storage.manifest import Manifest, StageEntry, write_manifest


def manifest(**states: str) -> Manifest:
    stages = dict.fromkeys(STAGES, "complete") | states
    return Manifest(name="m", stages={name: StageEntry(state=state) for name, state in stages.items() if state})


def test_a_finished_run_can_be_served(tmp_path) -> None:
    write_manifest(str(tmp_path), manifest(evaluate="failed"))
    check_servable(str(tmp_path))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("state", ["", "pending", "running", "failed"])
def test_a_run_without_one_of_the_stages_cannot(tmp_path, stage, state) -> None:
    write_manifest(str(tmp_path), manifest(**{stage: state}))
    with pytest.raises(UserError, match=f"its stage {stage} is {state or 'pending'}: finish it"):
        check_servable(str(tmp_path))


def test_no_run(tmp_path) -> None:
    with pytest.raises(UserError, match="There is no run"):
        check_servable(str(tmp_path))


def test_the_configuration_is_one_that_ray_serve_takes(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(serve_config("runs/demo"))
    app = ServeDeploySchema.model_validate(config).applications[0]
    assert app.import_path == "serving.app:application"
    assert app.args["run"] == f"{tmp_path}/runs/demo"
    deployed = application(app.args)
    assert [d["name"] for d in config["applications"][0]["deployments"]] == [deployed._bound_deployment.name]


@pytest.mark.parametrize("args", [{}, {"run": ""}, {"run": "r", "candidates": 99}, {"run": "r", "thread": 2}])
def test_wrong_arguments(args) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(args)
