"""The scripts of examples/ do what they say."""

from __future__ import annotations

import runpy
import subprocess
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


STUB = """#!/bin/sh
echo "$@" >>"{log}"
[ "$1" = export ] && mkdir -p "$6" && echo "{{}}" >"$6/catalog.json"
[ "$1" = update ] && exit {status}
exit 0
"""


@pytest.mark.parametrize("status", [0, 3, 4, 2])
def test_weekly(tmp_path: Path, status: int) -> None:
    state, log, stub = tmp_path / "served", tmp_path / "log", tmp_path / "tesserec"
    stub.write_text(STUB.format(log=log, status=status))
    stub.chmod(0o755)
    state.write_text(f"{tmp_path}/runs/shop\n")
    (tmp_path / "runs").mkdir()

    def week() -> tuple[int, list[str]]:
        log.write_text("")
        command = ["sh", str(EXAMPLES / "weekly.sh"), str(state), "sqlite:users.db"]
        environment = {"PATH": "/usr/bin:/bin", "TESSEREC": str(stub), "PYTHON": sys.executable}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.returncode, [line.split()[0] for line in log.read_text().splitlines()]

    assert week() == (status, ["export", "update", *(["roll"] if status == 0 else [])])
    served = state.read_text().strip()
    if status == 0:
        assert served.startswith(f"{tmp_path}/runs/shop-20")
        assert week() == (0, [])  # it is of today
    else:
        assert served == f"{tmp_path}/runs/shop"
        assert week() == (status, ["update"])  # what was exported is there
