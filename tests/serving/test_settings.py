from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from serving.deployments.service import application
from serving.settings import FITTED, RANKED, STAGES, Settings, check_servable, read_settings, serve_config
from storage.errors import UserError
from storage.manifest import Manifest, StageEntry, write_manifest

SCALED = """
service: {max_queued_requests: 9}
language_model:
  {num_cpus: 2, num_gpus: 0.5, max_replicas_per_node: 1, min_replicas: 2, max_replicas: 3, target_ongoing_requests: 7.5}
"""


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


@pytest.mark.parametrize("speaks", [True, False])
def test_the_configuration_is_one_that_ray_serve_takes(request, tmp_path, speaks) -> None:
    root = request.getfixturevalue("speaking_run" if speaks else "finished_run").root
    (tmp_path / "service.yaml").write_text(SCALED)
    text = serve_config(read_settings(root, str(tmp_path / "service.yaml")), language_model=speaks)
    config = yaml.safe_load(text)
    app = ServeDeploySchema.model_validate(config).applications[0]
    assert app.import_path == "serving.deployments.service:application"
    assert (app.args["run"], app.args["store"]) == (root, f"sqlite:{root}/users.db")
    deployed = application(app.args)
    within = [
        arg._bound_deployment.name for arg in deployed._bound_deployment.init_args if hasattr(arg, "_bound_deployment")
    ]
    assert [each.name for each in app.deployments] == [deployed._bound_deployment.name, *within]
    assert len(app.deployments) == 1 + speaks
    service = app.deployments[0]
    assert (service.num_replicas, service.max_queued_requests, service.ray_actor_options.num_cpus) == (1, 9, 1.0)
    assert deployed._bound_deployment.max_ongoing_requests > Settings(run="r", store="s").max_in_flight
    if speaks:
        model = app.deployments[1]
        assert model.max_replicas_per_node == 1
        assert model.autoscaling_config == {"min_replicas": 2, "max_replicas": 3, "target_ongoing_requests": 7.5}
        assert (model.ray_actor_options.num_cpus, model.ray_actor_options.num_gpus) == (2.0, 0.5)


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
        ("language_model: {min_replicas: 2}", "max_replicas lies below min_replicas: write 2 or more"),
        ("service: {num_cpu: 2}", "service.num_cpu"),
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
