"""docs/scaling.md quotes what the calculator prints, and every constant stands where it says."""

from __future__ import annotations

import doctest
import json
import sys
from pathlib import Path

import pytest

from benchmarks import scaling

REPOSITORY = Path(__file__).parents[2]


def section(name: str) -> str:
    constant = scaling.CONSTANTS[name]
    text = (REPOSITORY / constant.source).read_text()
    if not constant.section:
        return text
    return text.split(f"\n## {constant.section}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("name", scaling.CONSTANTS)
def test_the_figures_of_a_constant_stand_in_its_source(name: str) -> None:
    for said in scaling.CONSTANTS[name].said:
        assert said in section(name)


def test_the_page_quotes_the_calculator(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["scaling"])
    scaling.main()
    for printed in capsys.readouterr().out.strip().split("\n\n"):
        assert printed in (REPOSITORY / "docs" / "scaling.md").read_text(), printed


def test_twice_the_nodes_take_half_the_hours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = []
    for nodes in ("16", "32"):
        out = tmp_path / f"{nodes}.json"
        size = ["--items", "1e6", "--events", "1e8"]
        monkeypatch.setattr(sys, "argv", ["scaling", *size, "--nodes", nodes, "--out", str(out)])
        scaling.main()
        (found,) = json.loads(out.read_text())
        hours.append(found["hours"])
    assert hours[0] == pytest.approx(2 * hours[1])


def test_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(scaling).failed == 0
