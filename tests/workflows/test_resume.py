"""A long run that is killed time and again. A short one is killed in `distributed/test_jobs.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.workflows.kills import SETTINGS, assert_no_row_is_lost, run_with_kills, write_catalog

DEATHS = [*(["actor"] * 10), "all actors", "everything", *(["driver"] * 3)]


@pytest.mark.soak
@pytest.mark.timeout(1_800)
def test_a_run_killed_time_and_again_ends_with_the_rows_of_an_undisturbed_one(tmp_path: Path) -> None:
    undisturbed = write_catalog(tmp_path, items=1_200, users=10)
    stages = {"ingest": {}, "interpret": {}}
    (tmp_path / "w.yaml").write_text(yaml.safe_dump({"name": "w", "catalog": "catalog", "stages": stages}))
    overrides = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    # the last death is an actor's: the process that is left ends by itself
    process = run_with_kills(
        ["w.yaml", *overrides], tmp_path, str(tmp_path / "killed"), [*DEATHS, "actor"], len(undisturbed)
    )
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert_no_row_is_lost(str(tmp_path / "killed"), undisturbed, err)
