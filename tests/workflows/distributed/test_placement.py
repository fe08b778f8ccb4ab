from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.workflows.distributed.placement import ROWS, STEPS

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("placement")
    command = [sys.executable, "-m", "tests.workflows.distributed.placement", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    told: dict[str, Any] = json.loads((Path(folder) / "found.json").read_text())
    return told


def test_pools_run_on_nodes_with_their_labels(found: dict[str, Any]) -> None:
    assert sorted(found["labels"], key=str) == [None, "fit", "fit", "gpu"]
    assert sorted(row[0] for row in found["rows"]) == sorted(f"item {row}" for row in range(ROWS))
    assert {row[1].split()[0] for row in found["rows"]} == {found["gpu"]}
    assert {row[2].split()[0] for row in found["rows"]} <= set(found["fit"])


def test_two_actors_share_the_gpu_that_they_ask_for(found: dict[str, Any]) -> None:
    """The readers, which have no GPU, are not starved beside them: every row came through."""
    looked = {tuple(row[1].split()[1:]) for row in found["rows"]}
    assert len(looked) == 2
    assert {gpu for _, gpu in looked} == {"0"}


def test_a_fit_runs_on_nodes_with_its_labels(found: dict[str, Any]) -> None:
    assert found["there"] in found["fit"]


def test_a_fit_goes_on_with_one_worker_fewer(found: dict[str, Any]) -> None:
    reports = found["reports"]
    assert [report["step"] for report in reports] == list(range(1, STEPS + 1))
    assert [report["workers"] for report in reports] == sorted((each["workers"] for each in reports), reverse=True)
    assert (reports[0]["workers"], reports[-1]["workers"]) == (2, 1)
    assert reports[-1]["first"] >= 2  # from its last state, not from the beginning
