"""The scripts of examples/ do what they say."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import polars as pl
import pytest

from storage.manifest import require_manifest

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
