"""The scripts of examples/ do what they say."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import polars as pl
import pytest

from storage.manifest import require_manifest
from tests.served import served
from tests.serving.conftest import write_run

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    """Run a script as `python examples/NAME` does, in this process."""
    path = str(EXAMPLES / name)
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    runpy.run_path(path, run_name="__main__")


def test_own_catalogue(monkeypatch, tmp_path, capsys) -> None:
    run(monkeypatch, "own_catalogue.py", str(tmp_path))
    assert "ingest" in capsys.readouterr().out
    manifest = require_manifest(str(tmp_path / "run"))
    assert (manifest.stages["ingest"].rows_out, manifest.stages["ingest"].rejected) == (12, 0)
    events = pl.read_parquet(tmp_path / "run" / "log" / "events" / "*.parquet")
    assert events.height == 60
    assert "context_price" in events.columns


def test_custom_operator(capsys) -> None:
    done = runpy.run_path(str(EXAMPLES / "custom_operator.py"))["main"]().to_pydict()
    assert done["amount"] == [12.5, 9.0, None, 7.25]
    assert done["currency"] == ["EUR", "EUR", None, "USD"]
    assert done["outcome"] == ["kept", "kept", "rejected", "kept"]
    assert "could not convert" in capsys.readouterr().out


def test_ask_service(monkeypatch, tmp_path, capsys) -> None:
    finished = write_run(tmp_path / "run", labels=True)
    with served(finished) as url:
        run(monkeypatch, "ask_service.py", "--url", url, "--user", "user 4", "-k", "3")
        known = capsys.readouterr().out
        run(monkeypatch, "ask_service.py", "--url", url, "--liked", "item 2", "-k", "4")
        visitor = capsys.readouterr().out
        with pytest.raises(SystemExit, match="refused"):
            run(monkeypatch, "ask_service.py", "--url", url, "-k", "1000")
    assert "60 items" in known
    assert known.count("item ") >= 3
    assert "candidates from history" in visitor
