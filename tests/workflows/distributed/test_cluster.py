from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import pytest
import ray

from storage.errors import UserError
from tests.s3 import Server
from workflows.distributed import cluster

TIMED_OUT = "The current node timed out\nduring startup."


@pytest.mark.parametrize(
    ("reason", "free", "remedy"),
    [
        (TIMED_OUT, 1 << 40, "retry when the machine is less busy"),
        (TIMED_OUT, 1 << 20, "/tm/p is full: make room there, or set RAY_TMPDIR"),
        (
            "AF_UNIX path length cannot exceed 107 bytes: '/tm/p/x'",
            1 << 40,
            "the path of its temporary folder, /tm/p, is too long for sockets: set RAY_TMPDIR to a shorter one",
        ),
        (
            "Package size (600MiB) exceeds the maximum size of 512MiB",
            1 << 40,
            "move what is no code out of the folders",
        ),
    ],
)
def test_a_ray_that_does_not_start_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, reason: str, free: int, remedy: str
) -> None:
    def init(**_: Any) -> None:
        raise Exception(reason)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "local_settings", lambda cpus: {})
    monkeypatch.setenv("RAY_TMPDIR", "/tm/p")
    monkeypatch.setattr(cluster.Path, "exists", lambda _: True)
    monkeypatch.setattr(cluster.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(UserError) as told:
        cluster.connect("local", 2)
    assert str(told.value).startswith(f"Ray did not start here ({' '.join(reason.split())}): {remedy}")


def test_only_code_is_sent_to_workers(tmp_path: Path) -> None:
    """By Ray's own packer, which reads the patterns in a way of its own."""
    from ray._private.runtime_env.packaging import _zip_files

    kept = {f"{name}/{file}" for name in cluster.PACKAGES for file in ("__init__.py", "deep/er/a.yaml")}
    left = {"shop/film.mp4", "shop/models/x.py", "items.csv", ".git/HEAD", ".x", "runs/w/a", "models/__pycache__/a.pyc"}
    for name in kept | left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    _zip_files(str(tmp_path), cluster.EXCLUDES, str(tmp_path.parent / "sent.zip"), include_gitignore=True)
    with ZipFile(tmp_path.parent / "sent.zip") as sent:
        assert set(sent.namelist()) == kept
    assert all((cluster.REPOSITORY / name).is_dir() for name in cluster.PACKAGES)


@pytest.mark.usefixtures("ray_cluster")
def test_check_tells_what_a_cluster_has_and_what_has_no_room(tmp_path: Path, tesserec: Any) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\na,vase\n")
    fit = {"codebook_sizes": [1], "workers": 9}
    stages = {"ingest": {}, "interpret": {}, "project": {}, "quantize": fit}
    definition = tmp_path / "w.yaml"
    definition.write_text(json.dumps({"name": "w", "catalog": str(tmp_path), "stages": stages}))
    command = ["check", str(definition), "--run-dir", str(tmp_path / "run"), "--address", "auto"]
    status, out, err = tesserec(*command)
    assert status == 0, err
    (node,) = cluster.nodes("auto")
    assert f"  {node.name}: 8 CPUs, 0 GPUs\n  interpret: 6 actors of 1 CPUs" in out
    assert out.endswith("  quantize: 9 workers of 1 CPUs, room for 8 now\n")
    assert not (tmp_path / "run").exists()
    status, _, err = tesserec(*command, "--set", "stages.interpret.fetch={pool: {min: 9}}")
    assert status == 2
    assert "asks for 9 actors of 1 CPUs each and there is room for 6" in err


@pytest.mark.usefixtures("ray_cluster")
def test_every_node_is_asked_for_catalogue_and_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of one node twice, whose processes see the disk of this one and not its memory."""
    (node,) = cluster._alive("auto")
    monkeypatch.setattr(cluster, "_alive", lambda address: [node, node])
    catalog, run, lacks = str(tmp_path), str(tmp_path / "run"), f"^Node {node['NodeManagerAddress']} does not reach "
    cluster.check_reach("auto", catalog, run)
    assert list((tmp_path / "run").iterdir()) == []
    with pytest.raises(UserError, match=rf"{lacks}{catalog}/none: mount it there"):
        cluster.check_reach("auto", f"{catalog}/none", run)
    with pytest.raises(UserError, match=rf"{lacks}memory://run: .* send the variables that lead there with"):
        cluster.check_reach("auto", catalog, "memory://run")


def test_a_node_says_why_it_does_not_reach_a_store(s3: Server) -> None:
    place = f"{s3.bucket('nodes')}/place"
    s3.put(place, b"")
    assert cluster._unreached("/", place) == ""
    s3.fail(403)
    assert cluster._unreached("/", place).startswith(f"{place} (PermissionError: ")
