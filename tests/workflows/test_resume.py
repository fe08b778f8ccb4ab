"""Drivers, actors and whole process trees that are killed with SIGKILL in the middle of interpret."""

from __future__ import annotations

import contextlib
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from storage import files
from storage.hashing import hash_order
from storage.run import RunDir
from tests.workflows.interpreted import interpreted_here
from workflows.catalogs.synthetic.sample import write_sample
from workflows.distributed.streams import committed_rows
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.stages import ingest

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).parents[2]
COMMIT_ROWS = 4
COLUMNS = ["item_id", "title", "caption"]
PAUSE_S = 60  # the longest that a stream may stand still


SHORT = (80, ("all actors", "everything"))
LONG = (1_200, (*(["actor"] * 10), "everything", *(["driver"] * 3)))


@pytest.fixture(scope="module", params=[SHORT, pytest.param(LONG, marks=pytest.mark.soak)], ids=["short", "long"])
def killings(request):
    """Items of a catalogue, and what is killed while they are interpreted."""
    return request.param


@pytest.fixture(scope="module")
def place(tmp_path_factory, killings):
    """A catalogue and a workflow, in a folder that also holds a decoy of one of the project's packages."""
    root = tmp_path_factory.mktemp("resume")
    (root / "models").mkdir()
    (root / "models" / "__init__.py").write_text("raise ImportError('this is not the package you are looking for')")
    write_sample(str(root / "catalog"), items=killings[0], users=10)
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


@pytest.fixture(scope="module")
def undisturbed(place):
    """What is kept of the catalogue where nobody starts a process, much less kills one; by item_id."""
    run, catalog = RunDir(str(place / "undisturbed")), str(place / "catalog")
    context = Context(run, catalog, 0, "f", log=lambda line: None, progress=lambda done, total: None)
    stage("ingest").run(ingest.Config(max_reject_share=0.5), context)
    return interpreted_here(context).select(COLUMNS).to_pylist()


@pytest.mark.timeout(1_800)
def test_a_run_killed_time_and_again_ends_with_the_rows_of_an_undisturbed_one(place, undisturbed, killings):
    chance, run, pause = random.Random(0), "killed", 0.0
    process = start(place, run)
    committed = wait_for_rows(place, run, process, at_least=1)
    for death in killings[1]:
        assert committed < len(undisturbed)  # in the middle
        kill(process, death, chance)
        if death in ("everything", "driver"):
            process.communicate()
            process = start(place, run)
            committed = wait_for_rows(place, run, process, at_least=committed + 1)
        else:
            began = time.monotonic()
            committed = wait_for_rows(place, run, process, at_least=committed + 1)
            pause = max(pause, time.monotonic() - began)

    _, err = process.communicate(timeout=500)

    assert process.returncode == 0, err
    assert pause < PAUSE_S
    assert "arquet" not in err  # what Ray Data's readers say on the way
    reused, total, computed = resumed(err)
    assert 0 < reused <= total == reused + computed
    items, rejects = (files.read_table(str(place / run / name)) for name in ("items", "rejects/interpret"))
    assert items.select(COLUMNS).sort_by("item_id").to_pylist() == undisturbed
    ids = items["item_id"].to_pylist()
    assert ids == [ids[row] for row in hash_order(ids)]  # whichever block was done first
    rejected = [row["item_id"] for row in rejects.to_pylist() if row["severity"] == "rejected"]
    catalog = files.read_table(str(place / run / "catalog" / "items"))["item_id"].to_pylist()
    assert sorted([*ids, *rejected]) == sorted(catalog)


def kill(process: subprocess.Popen[str], death: str, chance: random.Random) -> None:
    """SIGKILL one actor, all actors, the driver alone, or the driver and all that it started."""
    family = descendants(process)
    actors = [child for child in family if "MapWorker" in " ".join(child.cmdline())]
    driver = psutil.Process(process.pid)
    victims = {
        "actor": lambda: [chance.choice(actors)],
        "all actors": lambda: actors,
        "everything": lambda: [*family, driver],
        "driver": lambda: [driver],
    }
    chosen = victims[death]()
    assert chosen
    for one in chosen:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


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
