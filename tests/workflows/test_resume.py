"""Drivers, actors and whole process trees that are killed with SIGKILL in the middle of interpret."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
import yaml

from storage import files
from workflows.catalogs.sample import write_sample
from workflows.streams import committed_rows

REPOSITORY = Path(__file__).parents[2]
COMMIT_ROWS = 4
PAUSE_S = 60  # the longest that a stream may stand still


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A catalogue and a workflow, in a folder that also holds a decoy of one of the project's packages."""
    root = tmp_path_factory.mktemp("resume")
    (root / "models").mkdir()
    (root / "models" / "__init__.py").write_text("raise ImportError('this is not the package you are looking for')")
    write_sample(str(root / "catalog"), items=160, users=10)
    stages = {
        "ingest": {"max_reject_share": 0.5},
        "interpret": {"commit_rows": COMMIT_ROWS, "cache": False},  # a cache would hide what is computed again
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


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.soak)])
def test_a_run_killed_time_and_again_ends_with_the_rows_of_an_undisturbed_one(place, undisturbed, kills):
    run = f"killed-{kills}"
    kept = 0
    for kill in range(kills):
        process = start(place, run)
        committed = wait_for_rows(place, run, process, at_least=kept + COMMIT_ROWS)
        os.kill(process.pid, signal.SIGKILL)
        reused, _, _ = resumed(process.communicate()[1]) if kept else (0, 0, 0)
        assert kept <= reused <= committed
        assert kill > 1 or committed < undisturbed.num_rows  # in the middle
        kept = committed

    process = start(place, run)
    _, err = process.communicate(timeout=300)

    assert process.returncode == 0, err
    reused, total, computed = resumed(err)
    assert kept <= reused <= total == reused + computed
    assert rows_of(place, run).equals(undisturbed)


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.soak)])
def test_actors_killed_and_then_everything_cost_no_row_and_no_long_pause(place, undisturbed, kills):
    run, chance = f"chaos-{kills}", random.Random(kills)
    process = start(place, run)
    committed, pause = wait_for_rows(place, run, process, at_least=1), 0.0
    for _ in range(kills):
        actors = [child for child in descendants(process) if "MapWorker" in " ".join(child.cmdline())]
        chance.choice(actors).kill()
        began = time.monotonic()
        committed = wait_for_rows(place, run, process, at_least=committed + 1)
        pause = max(pause, time.monotonic() - began)
        time.sleep(chance.uniform(0, 2))
    for child in [*descendants(process), psutil.Process(process.pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.communicate()

    process = start(place, run)
    _, err = process.communicate(timeout=300)

    assert process.returncode == 0, err
    assert pause < PAUSE_S
    assert committed < undisturbed.num_rows  # everything was killed in the middle
    assert rows_of(place, run).equals(undisturbed)
    items, rejects = (files.read_table(str(place / run / name)) for name in ("items", "rejects/interpret"))
    rejected = [row["item_id"] for row in rejects.to_pylist() if row["severity"] == "rejected"]
    catalog = files.read_table(str(place / run / "catalog" / "items"))["item_id"].to_pylist()
    assert sorted([*items["item_id"].to_pylist(), *rejected]) == sorted(catalog)


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children(recursive=True) if child.status() != "zombie"]


def resumed(log: str) -> tuple[int, ...]:
    """Rows reused, rows in all and rows to compute, as a resumed run says them."""
    found = re.search(r"(\d+) of (\d+) rows are done already and reused, (\d+) to compute", log)
    assert found is not None, log
    return tuple(map(int, found.groups()))


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
