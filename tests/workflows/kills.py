"""Runs that are killed with SIGKILL in the middle of interpret: actors, drivers and whole process trees."""

from __future__ import annotations

import contextlib
import random
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from storage import files
from storage.hashing import hash_order
from storage.run import RunDir
from tests.workflows.interpreted import interpreted_here
from workflows.catalogs.synthetic.sample import write_sample
from workflows.distributed.streams import committed_rows
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.stages.ingest import stage as ingest

COLUMNS = ["item_id", "title", "caption"]
SETTINGS = {  # a cache would hide what is computed again
    "stages.ingest.max_reject_share": "0.5",
    "stages.interpret.commit_rows": "4",
    "stages.interpret.cache": "false",
}
PAUSE_S = 60  # the longest that a stream may stand still


def write_catalog(place: Path, items: int, users: int) -> list[dict[str, Any]]:
    """Write a catalogue, and a decoy of one of the project's packages into the same folder.

    Returns what an undisturbed run keeps of it: nobody starts a process for that, much less kills one; by item_id.
    """
    (place / "models").mkdir()
    (place / "models" / "__init__.py").write_text("raise ImportError('this is not the package you are looking for')")
    write_sample(str(place / "catalog"), items=items, users=users)
    run = RunDir(str(place / "undisturbed"))
    context = Context(run, str(place / "catalog"), 0, "f", log=lambda line: None, progress=lambda done, total: None)
    stage("ingest").run(ingest.Config(max_reject_share=0.5), context)
    return interpreted_here(context).select(COLUMNS).to_pylist()


def run_with_kills(
    command: Sequence[str], place: Path, run: str, deaths: Sequence[str], rows: int
) -> subprocess.Popen[str]:
    """Start a run from a folder, and again after each death of its driver but the last; return the last process.

    Every death falls between two commits of interpret, which has `rows` rows.
    """
    chance = random.Random(0)
    process = _start(command, place, run)
    committed = _wait_for_rows(run, process, at_least=1)
    for number, death in enumerate(deaths, 1):
        assert committed < rows  # in the middle
        _kill(process, death, chance)
        began = time.monotonic()
        if driver_died := death in ("everything", "driver"):
            process.communicate()
            if number == len(deaths):
                break
            process = _start(command, place, run)
        committed = _wait_for_rows(run, process, at_least=committed + 1)
        assert driver_died or time.monotonic() - began < PAUSE_S
    return process


def assert_no_row_is_lost(run: str, undisturbed: list[dict[str, Any]], log: str) -> None:
    """The run resumed and ended with the rows of an undisturbed one, in their order; `log` is what it said last."""
    assert "arquet" not in log  # what Ray Data's readers say on the way
    found = re.search(r"(\d+) of (\d+) rows are done already and reused, (\d+) to compute", log)
    assert found is not None, log
    reused, total, computed = map(int, found.groups())
    assert 0 < reused <= total == reused + computed
    items, rejects = (files.read_table(files.join(run, name)) for name in ("items", "rejects/interpret"))
    assert items.select(COLUMNS).sort_by("item_id").to_pylist() == undisturbed
    ids = items["item_id"].to_pylist()
    assert ids == [ids[row] for row in hash_order(ids)]  # whichever block was done first
    rejected = [row["item_id"] for row in rejects.to_pylist() if row["severity"] == "rejected"]
    catalog = files.read_table(files.join(run, "catalog", "items"))["item_id"].to_pylist()
    assert sorted([*ids, *rejected]) == sorted(catalog)


def _start(command: Sequence[str], place: Path, run: str) -> subprocess.Popen[str]:
    line = [Path(sys.executable).parent / "tesserec", "run", *command, "--run-dir", run]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, cwd=place, text=True, start_new_session=True, **pipes)


def _kill(process: subprocess.Popen[str], death: str, chance: random.Random) -> None:
    """SIGKILL one actor, all actors, the driver alone, or the driver and all that it started."""
    driver = psutil.Process(process.pid)
    family = [child for child in driver.children(recursive=True) if child.status() != "zombie"]
    actors = [child for child in family if "MapWorker" in " ".join(child.cmdline())]
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


def _wait_for_rows(run: str, process: subprocess.Popen[str], at_least: int) -> int:
    """Wait until interpret has committed so many rows; return how many."""
    until, known = time.monotonic() + 300, dict[str, int]()
    fs, path = files.filesystem(files.join(run, "checkpoints", "interpret"))
    while time.monotonic() < until:
        for sink in fs.ls(path, detail=False) if fs.exists(path) else ():
            if (found := committed_rows(fs.unstrip_protocol(sink), known)) >= at_least:
                return found
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02 if "file" in fs.protocol else 1)  # a server has other things to do
    raise AssertionError("no rows were committed in time")
