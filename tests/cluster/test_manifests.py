"""The manifests fit KubeRay's schemas, name things that exist, and their entrypoints are commands that work."""

from __future__ import annotations

import copy
import importlib
import shlex
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from ray.serve.schema import ServeDeploySchema

from serving.settings import Settings
from tests.cluster.manifests import CLUSTER, OURS, REPOSITORY, closed, of_kind, pods, rendered, schema, written
from tests.docs.pages import commands
from workflows import cli
from workflows.distributed.cluster import PACKAGES
from workflows.engine.definition import load

RAY_KINDS = {"RayCluster": "", "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
RUN, STORE = "s3://BUCKET/runs/mine", "redis://redis:6379/1"


def ray(kind: str) -> dict[str, Any]:
    """The specification of the Ray cluster in an object."""
    spec = of_kind(kind, written())["spec"]
    return spec[RAY_KINDS[kind]] if RAY_KINDS[kind] else spec


def served() -> ServeDeploySchema:
    return ServeDeploySchema.model_validate(yaml.safe_load((CLUSTER / "serve.yaml").read_text()))


@pytest.mark.parametrize("kind", RAY_KINDS)
@pytest.mark.parametrize("objects", [written, rendered])
def test_a_manifest_fits_the_schema_of_kuberay(kind: str, objects: Callable[[], list[dict]]) -> None:
    jsonschema.validate(of_kind(kind, objects()), schema(kind))


def test_a_misspelt_field_does_not_fit() -> None:
    wrong = copy.deepcopy(of_kind("RayJob", written()))
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 8
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(wrong, schema("RayJob"))


@pytest.mark.parametrize("kind", ["Job", "StatefulSet"])
def test_the_pods_of_kubernetes_own_kinds_fit_the_schema_of_pods_in_kuberays(kind: str) -> None:
    template = schema("RayCluster")["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]["template"]
    jsonschema.validate(of_kind(kind, written())["spec"]["template"], template)


def test_the_weekly_job_starts_the_script_on_the_standing_cluster() -> None:
    spec = of_kind("CronJob", written())["spec"]["jobTemplate"]["spec"]["template"]
    template = schema("RayCluster")["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]["template"]
    jsonschema.validate(spec, template)
    (container,) = spec["spec"]["containers"]
    cluster = of_kind("RayCluster", written())["metadata"]["name"]
    assert container["command"][4] == f"http://{cluster}-head-svc:8265"
    assert (REPOSITORY / container["args"][1]).read_text().startswith("#!/bin/sh")


def test_objects_of_ray_have_names_of_their_own() -> None:
    """KubeRay calls the service of a head after its object: two of one name would be one service."""
    names = [of_kind(kind, written())["metadata"]["name"] for kind in RAY_KINDS]
    assert len(set(names)) == len(names)


def test_a_closed_schema_leaves_maps_open() -> None:
    labels = {"type": "object", "additionalProperties": {"type": "string"}}
    schema = closed({"type": "object", "properties": {"labels": labels}})
    jsonschema.validate({"labels": {"a": "b"}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"label": {}}, schema)


def test_every_value_is_filled_in() -> None:
    objects = rendered()
    words = shlex.split(of_kind("RayJob", objects)["spec"]["entrypoint"])
    assert words[words.index("--run-dir") + 1] == RUN
    (pod,) = pods(of_kind("Job", objects))
    assert pod["containers"][0]["args"] == [RUN, "--store", STORE]
    (weekly,) = pods(of_kind("CronJob", objects))
    assert weekly["containers"][0]["args"][2:] == ["s3://BUCKET/served", STORE, "auto"]
    service = of_kind("RayService", objects)["spec"]
    assert service["rayClusterConfig"]["gcsFaultToleranceOptions"]["redisAddress"] == "redis:6379"
    assert service["serveConfigV2"] == (CLUSTER / "serve.yaml").read_text()
    assert served().applications[0].args == {"run": RUN, "store": STORE}
    definition = yaml.safe_load(of_kind("ConfigMap", objects)["data"]["workflow.yaml"])
    assert definition["catalog"] == "s3://BUCKET/catalog"
    assert {one["metadata"]["namespace"] for one in objects} == {"tesserec"}


def test_other_values_are_filled_in_at_the_same_places(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    shutil.copytree(CLUSTER, folder)
    text = (folder / "kustomization.yaml").read_text()
    text = text.replace(f"run={RUN}", "run=gs://b/r").replace("newTag: 0.1.0-gpu", "newTag: '7'")
    (folder / "kustomization.yaml").write_text(text.replace("newName: tesserec,", "newName: registry.example/t,"))
    objects = rendered(folder)
    assert " --run-dir gs://b/r --address auto" in of_kind("RayJob", objects)["spec"]["entrypoint"]
    images = {container["image"] for pod in pods(objects) for container in pod["containers"]}
    assert images == {"registry.example/t:0.1.0", "registry.example/t:7", "redis:7.4"}


def test_every_part_can_be_applied_by_itself() -> None:
    parts = {f"part={one['metadata']['labels']['part']}" for one in rendered()}
    named = {part for line in commands(CLUSTER / "README.md") for part in line.split() if part.startswith("part=")}
    assert named == parts


def entrypoints() -> list[list[str]]:
    (pod,) = pods(of_kind("Job", written()))
    (container,) = pod["containers"]
    return [
        shlex.split(of_kind("RayJob", written())["spec"]["entrypoint"]),
        [*container["command"], *container["args"]],
    ]


@pytest.mark.parametrize("words", entrypoints(), ids=lambda words: words[3])
def test_an_entrypoint_is_a_command_of_ours(words: list[str]) -> None:
    assert words[:3] == ["python", "-m", "workflows"]
    command = typer.main.get_command(cli.app).commands[words[3]]  # type: ignore[attr-defined]
    command.make_context(words[3], words[4:])


def test_the_job_runs_the_definition_that_lies_in_its_head(
    tesserec: Callable, tmp_path: Path, monkeypatch: Any
) -> None:
    """The entrypoint as it stands, but for the places of its files, up to the stage that needs no Ray."""
    from workflows.catalogs.synthetic.sample import write_sample

    write_sample(str(tmp_path / "catalog"), items=80, users=20)
    definition = yaml.safe_load((CLUSTER / "workflow.yaml").read_text()) | {"catalog": str(tmp_path / "catalog")}
    (tmp_path / "workflow.yaml").write_text(yaml.safe_dump(definition, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    _, _, _, name, workflow, *rest = entrypoints()[0]
    (head,) = pods(ray("RayJob")["headGroupSpec"])
    (mount,) = head["containers"][0]["volumeMounts"]
    assert workflow == f"{mount['mountPath']}/workflow.yaml"
    rest[rest.index("--address") + 1] = "local"
    status, _, error = tesserec(
        name, "workflow.yaml", *rest, "--until", "ingest", "--set", "stages.ingest={max_reject_share: 0.5}"
    )
    assert status == 0, error
    assert (tmp_path / "RUN" / "manifest.json").exists()


def test_the_definition_beside_the_manifests_is_valid() -> None:
    definition = load(str(CLUSTER / "workflow.yaml"), [])
    assert definition.name == "mine"


def test_the_service_imports_an_application_and_its_arguments_are_valid() -> None:
    for application in served().applications:
        module, name = application.import_path.split(":")
        assert callable(getattr(importlib.import_module(module), name))
        Settings.model_validate(application.args)


def test_the_service_survives_the_loss_of_a_node_and_of_its_head() -> None:
    (application,) = served().applications
    for deployment in application.deployments:
        assert (deployment.num_replicas, deployment.max_replicas_per_node) == (2, 1)
    cluster = ray("RayService")
    assert cluster["gcsFaultToleranceOptions"].keys() == {"redisAddress"}  # each cluster has a namespace of its own
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert all(group["minReplicas"] >= 2 for group in cluster["workerGroupSpecs"])


@pytest.mark.parametrize("kind", RAY_KINDS)
def test_every_node_runs_the_pinned_ray_from_one_image(kind: str) -> None:
    lock = (REPOSITORY / "requirements" / "cpu.txt").read_text().splitlines()
    cluster = ray(kind)
    assert f"ray=={cluster['rayVersion']}" in lock
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        (pod,) = pods(group)
        (container,) = pod["containers"]
        asks_for_gpus = "nvidia.com/gpu" in container["resources"]["limits"]
        assert container["image"] == ("tesserec-gpu" if asks_for_gpus else "tesserec")
        flavour = "gpu" if asks_for_gpus else "cpu"
        assert f"rayproject/ray:{cluster['rayVersion']}-py311-{flavour}" in dockerfile


def test_no_container_of_ours_is_root() -> None:
    (user,) = (line.split()[1] for line in (CLUSTER / "Dockerfile").read_text().splitlines() if line.startswith("USER"))
    for pod in pods(written()):
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            if container["image"] in OURS:
                assert pod["securityContext"]["runAsUser"] == int(user)


def test_the_image_is_built_of_files_that_exist() -> None:
    lines = [line.split() for line in (CLUSTER / "Dockerfile").read_text().splitlines() if line.startswith("COPY")]
    for _, *options_and_source, _target in lines:
        for lock in ("cpu", "cuda"):
            assert (REPOSITORY / options_and_source[-1].replace("${LOCK}", lock)).exists()


def in_context(path: str) -> bool:
    """Tells whether Docker gets a file of the repository: the last pattern that fits it, or a folder above, decides."""
    given = True
    for pattern in (REPOSITORY / ".dockerignore").read_text().splitlines():
        names = pattern.removeprefix("!").split("/")
        for place in (PurePosixPath(path), *PurePosixPath(path).parents[:-1]):
            parts = ("**", place.name) if names[0] == "**" else place.parts
            if len(parts) == len(names) and all(map(fnmatch, parts, names)):
                given = pattern.startswith("!")
    return given


def test_the_image_holds_the_code_and_nothing_else_of_a_clone() -> None:
    weekly = of_kind("CronJob", written())["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    for needed in ("requirements/cpu.txt", "requirements/cuda.txt", weekly["args"][1]):
        assert in_context(needed), needed
    for package in PACKAGES:
        for file in (REPOSITORY / package).rglob("*"):
            assert in_context(f"{file.relative_to(REPOSITORY)}") or file.is_dir() or "__pycache__" in file.parts, file
    for other in ("secrets.env", "cluster/secrets.env", "serving/secrets.env", "users.db", "mine-export/items.parquet"):
        assert not in_context(other), other


def test_git_leaves_out_files_of_secrets() -> None:
    assert "*.env" in (REPOSITORY / ".gitignore").read_text().splitlines()


def test_an_image_for_cpus_is_built_with_an_index_that_has_torch_for_them() -> None:
    assert "+cpu" in (REPOSITORY / "requirements" / "cpu.txt").read_text()
    built = [*commands(CLUSTER / "README.md"), *(CLUSTER / "Dockerfile").read_text().splitlines()]
    for line in (line for line in built if "docker build" in line):
        assert ("LOCK=cuda" in line) != ("--build-arg TORCH_INDEX=" in line), line
