from __future__ import annotations

from pathlib import Path

import pytest

from serving.runs import rolling, side_by_side
from storage.run import RunDir
from tests.serving.finished import next_run


@pytest.fixture(scope="module")
def new_run(finished_run: RunDir, tmp_path_factory) -> RunDir:
    return next_run(finished_run, tmp_path_factory.mktemp("next") / "run")


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path}/users.db"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "LOOK_S", 0.02)
    monkeypatch.setattr(side_by_side, "BEAT_S", 0.2)
    monkeypatch.setattr(side_by_side, "COUNT_S", 0.0)
    monkeypatch.setattr(rolling, "LOOK_S", 0.02)
