"""The scripts of examples/ do what they say."""

from __future__ import annotations

import re
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
[ "$1" = export ] && mkdir -p "$6" && echo >"$6/items.parquet"
[ "$1" = update ] && exit {status}
exit 0
"""


class Weekly:
    """`weekly.sh` with a command that only notes what it is asked."""

    def __init__(self, folder: Path) -> None:
        self.state, self.log, self._bin = folder / "runs" / "served", folder / "log", folder / "bin"
        self._bin.mkdir()
        self.state.parent.mkdir()
        self.serve("shop")

    def serve(self, run: str) -> None:
        self.state.write_text(f"{self.state.parent}/{run}\n")

    @property
    def served(self) -> str:
        return Path(self.state.read_text().strip()).name

    def __call__(self, status: int, day: int = 5) -> tuple[int, list[str]]:
        """Starts it on a day of January; returns its status and the commands with the day in their names."""
        self._program("tesserec", STUB.format(log=self.log, status=status))
        self._program("date", f"#!/bin/sh\necho 2026-01-{day:02d}\n")
        self.log.write_text("")
        command = ["sh", str(EXAMPLES / "weekly.sh"), str(self.state), "sqlite:users.db"]
        tesserec = str(self._bin / "tesserec")
        environment = {"PATH": f"{self._bin}:/usr/bin:/bin", "TESSEREC": tesserec, "PYTHON": sys.executable}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        told = re.findall(r"(?m)^([a-z]+).*2026-01-(\d+)", self.log.read_text())
        return done.returncode, [" ".join(each) for each in told]

    def _program(self, name: str, text: str) -> None:
        (self._bin / name).write_text(text)
        (self._bin / name).chmod(0o755)


@pytest.mark.parametrize("status", [0, 3, 4, 2])
def test_weekly(tmp_path: Path, status: int) -> None:
    week = Weekly(tmp_path)
    assert week(status) == (status, ["export 05", "update 05", *(["roll 05"] if status == 0 else [])])
    if status == 0:
        assert week.served == "shop-2026-01-05"
        assert week(status) == (0, [])  # it is of today
    else:
        assert week.served == "shop"
        assert week(status) == (status, ["update 05"])  # what was exported is there
    goes_on = status == 2  # without a verdict
    assert week(0, day=12)[1] == (["update 05", "roll 05"] if goes_on else ["export 12", "update 12", "roll 12"])
    assert week.served == f"shop-2026-01-{'05' if goes_on else '12'}"


def test_a_week_that_was_killed_is_given_up_where_another_run_is_served_by_now(tmp_path: Path) -> None:
    week = Weekly(tmp_path)
    assert week(137) == (137, ["export 05", "update 05"])
    week.serve("shop-refit")
    assert week(0, day=12) == (0, ["export 12", "update 12", "roll 12"])
    assert week.served == "shop-refit-2026-01-12"
