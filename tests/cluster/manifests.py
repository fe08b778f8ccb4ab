"""The manifests of `cluster/` as they are applied, and KubeRay's schemas of them."""

from __future__ import annotations

import functools
import gzip
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
CLUSTER = REPOSITORY / "cluster"
FILES = ("redis.yaml", "raycluster.yaml", "rayjob.yaml", "load.yaml", "rayservice.yaml", "weekly.yaml")
OURS = {"tesserec", "tesserec-gpu"}  # images
# ray.io_*.yaml.gz: the CustomResourceDefinitions of ray-project/kuberay (Apache-2.0), in a folder above the project.
SCHEMAS = next((found for above in REPOSITORY.parents if (found := above / "shared" / "kuberay").is_dir()), None)


def written() -> list[dict[str, Any]]:
    """All objects as they stand in the files."""
    return [one for name in FILES for one in yaml.safe_load_all((CLUSTER / name).read_text())]


@functools.cache
def rendered(folder: Path = CLUSTER) -> list[dict[str, Any]]:
    """All objects with the values filled in."""
    if not shutil.which("kubectl"):
        pytest.skip("needs kubectl, which fills in the values")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(kind: str, objects: list[dict[str, Any]]) -> dict[str, Any]:
    """The one object of a kind."""
    (found,) = (one for one in objects if one["kind"] == kind)
    return found


def pods(value: Any) -> Iterator[dict[str, Any]]:
    """The specifications of pods anywhere in an object."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for inner in value.values():
            yield from pods(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pods(inner)


@functools.cache
def schema(kind: str) -> dict[str, Any]:
    """KubeRay's schema of a kind as JSON Schema, in which a field that it does not know is an error."""
    if SCHEMAS is None:
        pytest.skip("needs KubeRay's schemas in a folder shared/kuberay above the repository")
    text = gzip.decompress((SCHEMAS / f"ray.io_{kind.lower()}s.yaml.gz").read_bytes())
    versions = yaml.load(text, yaml.CSafeLoader)["spec"]["versions"]
    (version,) = (one for one in versions if one["name"] == "v1")
    return closed(version["schema"]["openAPIV3Schema"])


def closed(node: Any) -> Any:
    """A schema whose objects have no other properties than those named; Kubernetes drops others in silence."""
    if isinstance(node, list):
        return [closed(one) for one in node]
    if not isinstance(node, dict):
        return node
    result = {key: closed(value) for key, value in node.items()}
    named = isinstance(node.get("properties"), dict) and node.get("type") == "object"
    if named and "additionalProperties" not in node and not node.get("x-kubernetes-preserve-unknown-fields"):
        result["additionalProperties"] = False
    return result
