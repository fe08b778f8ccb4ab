"""Nodes that die while a run is on a cluster of three: in every kind of stage, and each fault time and again."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.faults import FAULTS, STAGES, STORE, Nodes, Run, rows_of
from tests.conftest import REPOSITORY
from tests.workflows.kills import write_catalog

pytestmark = pytest.mark.long
TRIES = 10


@pytest.mark.soak  # seven minutes on two cores
@pytest.mark.timeout(1_800)
def test_a_run_that_loses_a_node_in_each_kind_of_stage_has_the_rows_of_an_undisturbed_one(tmp_path: Path) -> None:
    write_catalog(tmp_path, items=96, users=40)
    definition = tmp_path / "w.yaml"
    definition.write_text(yaml.safe_dump({"name": "w", "catalog": str(tmp_path / "catalog"), "stages": STAGES}))
    chance, met = random.Random(0), list[str]()
    with Nodes(STORE["enough"]) as nodes:
        undisturbed = Run(definition, tmp_path / "undisturbed", nodes)
        undisturbed.to_end()
        run = Run(definition, tmp_path / "struck", nodes)
        process = run.start()
        for stage in ("ingest", "interpret", "features", "rank"):
            if run.follow(process, until_in=stage):
                met.append(stage)
                nodes.lose(chance)
                nodes.join()
        run.follow(process)
        run.check(process)
    assert met == ["ingest", "interpret", "features", "rank"]
    before, after = rows_of(undisturbed.folder), rows_of(run.folder)
    assert before.total() > 0
    assert after == before


@pytest.mark.soak
@pytest.mark.timeout(6_000)
@pytest.mark.parametrize("fault", FAULTS)
def test_no_row_is_lost_or_doubled_by_any_fault(fault: str, tmp_path: Path) -> None:
    out = tmp_path / "tries.json"
    command = [sys.executable, "-m", "benchmarks.faults", "--fault", fault, "--times", str(TRIES), "--out", str(out)]
    done = subprocess.run([*command, "--data", str(tmp_path / "data")], cwd=REPOSITORY, check=False)
    assert done.returncode == 0, [one for one in json.loads(out.read_text()) if one["state"] != "passed"]
