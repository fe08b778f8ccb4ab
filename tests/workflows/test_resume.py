"""A driver that is killed with SIGKILL in the middle of interpret, and the same command again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from storage import files
from workflows.catalogs.sample import write_sample
from workflows.streams import committed_rows

REPOSITORY = Path(__file__).parents[2]
COMMIT_ROWS = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A catalogue and a workflow, in a folder that also holds a decoy of one of the project's packages."""
    root = tmp_path_factory.mktemp("resume")
    (root / "models").mkdir()
    (root / "models" / "__init__.py").write_text("raise ImportError('this is not the package you are looking for')")
    write_sample(str(root / "catalog"), items=80, users=10)
    stages = {
        "ingest": {"max_reject_share": 0.5},
        "interpret": {"commit_rows": COMMIT_ROWS, "pools": {"embed_images": {"size": 1, "batch_size": 4}}},
    }
    (root / "w.yaml").write_text(yaml.safe_dump({"name": "w", "catalog": "catalog", "stages": stages}))
    return root


def start(place: Path, run: str) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).parent / "tesserec"), "run", "w.yaml", "--run-dir", run]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=place, text=True, start_new_session=True, **pipes)


def rows_of(place: Path, run: str) -> pa.Table:
    return files.read_table(str(place / run / "items")).select(["item_id", "title", "caption"])


@pytest.fixture(scope="module")
def undisturbed(place):
    process = start(place, "undisturbed")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return rows_of(place, "undisturbed")


@pytest.mark.parametrize("attempt", [0, 1, 2, *(pytest.param(i, marks=pytest.mark.soak) for i in range(3, 10))])
def test_a_killed_run_ends_with_the_rows_of_an_undisturbed_one(place, undisturbed, attempt):
    run = f"killed-{attempt}"
    first = start(place, run)
    kept = wait_for_rows(place, run, first, at_least=COMMIT_ROWS * (1 + 3 * (attempt % 5)))
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()

    second = start(place, run)
    _, err = second.communicate(timeout=300)

    assert second.returncode == 0, err
    reused, total, computed = map(
        int, re.search(r"(\d+) of (\d+) rows are done already and reused, (\d+) to compute", err).groups()
    )
    assert kept <= reused < total
    assert reused + computed == total
    assert rows_of(place, run).equals(undisturbed)


def wait_for_rows(place: Path, run: str, process: subprocess.Popen[str], at_least: int) -> int:
    folder = place / run / "checkpoints" / "interpret"
    until = time.monotonic() + 300
    while time.monotonic() < until:
        for sink in folder.glob("*"):
            if (found := committed_rows(str(sink))) >= at_least:
                return found
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError("no rows were committed in time")
