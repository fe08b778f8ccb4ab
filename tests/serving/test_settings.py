from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from serving.deployments.service import application
from serving.settings import FITTED, RANKED, STAGES, Settings, check_servable, read_settings, serve_config
from storage.errors import UserError
from storage.manifest import Manifest, StageEntry, write_manifest


def manifest(**states: str) -> Manifest:
    stages = dict.fromkeys((*STAGES, *RANKED), "complete") | states
    return Manifest(name="m", stages={name: StageEntry(state=state) for name, state in stages.items() if state})


def test_a_finished_run_can_be_served(tmp_path) -> None:
    write_manifest(str(tmp_path), manifest(evaluate="failed"))
    check_servable(str(tmp_path))


def test_a_run_with_other_recommenders_needs_no_ranker(tmp_path) -> None:
    write_manifest(str(tmp_path), manifest(rank="failed", features="", **dict.fromkeys(FITTED, "complete")))
    check_servable(str(tmp_path))


def test_a_run_on_no_local_disk_needs_a_store() -> None:
    with pytest.raises(UserError, match="memory://run is on no local disk, so users need a store"):
        read_settings("memory://run", None)


@pytest.mark.parametrize("stage", [*STAGES, *RANKED])
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
    config = yaml.safe_load(serve_config(read_settings("runs/demo", None)))
    app = ServeDeploySchema.model_validate(config).applications[0]
    assert app.import_path == "serving.deployments.service:application"
    assert app.args["run"] == f"{tmp_path}/runs/demo"
    assert app.args["store"] == f"sqlite:{tmp_path}/runs/demo/users.db"
    deployed = application(app.args)
    assert [d["name"] for d in config["applications"][0]["deployments"]] == [deployed._bound_deployment.name]
    options = deployed._bound_deployment
    assert options.max_queued_requests == Settings(run="r", store="s").max_in_flight < options.max_ongoing_requests


@pytest.mark.parametrize("args", [{}, {"run": ""}, {"run": "r"}, {"run": "r", "store": "s", "candidates": 99}])
def test_wrong_arguments(args) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(args)


def test_settings_of_a_file(tmp_path) -> None:
    (tmp_path / "service.yaml").write_text("max_in_flight: 8\ncors_origins: [https://shop.example]\n")
    settings = read_settings("/runs/demo", str(tmp_path / "service.yaml"))
    store = "sqlite:/runs/demo/users.db"
    assert settings == Settings(run="/runs/demo", store=store, max_in_flight=8, cors_origins=("https://shop.example",))
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert read_settings("/runs/demo", str(tmp_path / "empty.yaml")) == read_settings("/runs/demo", None)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("max_in_flihgt: 8", r"service.yaml: unknown key max_in_flihgt; did you mean max_in_flight\?"),
        ("max_in_flight: 0", "max_in_flight is 0: input should be greater than or equal to 1."),
        ("timeout_seconds: .nan", "timeout_seconds is nan: "),
        ("run: runs/demo", "leave run out"),
        ("- 8", "must be a YAML mapping"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_a_mistake_in_the_file_is_told(tmp_path, text, sentence) -> None:
    (tmp_path / "service.yaml").write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_settings("r", str(tmp_path / "service.yaml"))


def test_no_file(tmp_path) -> None:
    with pytest.raises(UserError, match="There is no file of the service's settings at"):
        read_settings("r", str(tmp_path / "none.yaml"))
