"""The verdict on the page of an update."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.manifest import Manifest, StageEntry, write_manifest
from storage.run import RunDir
from workflows.engine.summary import summary
from workflows.report import write_report

UPDATE = {
    "previous": "runs/<b>shop</b>",
    "verdict": "keep the old one",
    "reasons": ["50 events a day came in, where 100 are usual"],
    "log": {"per_day": 50.0, "usual_per_day": 100.0, "rate": 0.25, "usual_rate": None},
    "items": {"new": 6, "gone": 1, "new_values": {"colour": ["<i>teal</i>"]}},
    "scores": {},
    "learned_from": {"users": 2, "items": 1, "told": "models have learned from 2 users and 1 items"},
}


def manifest(**metrics: object) -> Manifest:
    return Manifest(name="shop", stages={"evaluate": StageEntry(state="complete", metrics=metrics)})


def test_the_verdict_stands_on_the_page_and_on_the_terminal(tmp_path: Path) -> None:
    write_manifest(str(tmp_path), manifest(update=UPDATE))
    page = Path(write_report(RunDir(str(tmp_path)))).read_text()
    for text in (
        "keep the old one",
        "50 events a day came in",
        "6 items are new, 1 are gone.",
        "New values of attributes: colour: &lt;i&gt;teal&lt;/i&gt;.",
        "models have learned from 2 users",
        "runs/&lt;b&gt;shop&lt;/b&gt;",
        "25.0%",
    ):
        assert text in page
    shown = summary(manifest(update=UPDATE), str(tmp_path))
    assert "verdict: keep the old one\n  50 events a day came in, where 100 are usual" in shown


@pytest.mark.parametrize("metrics", [{}, {"ranker": {"auc": 0.7}}])
def test_a_run_that_goes_on_from_none_has_no_verdict(tmp_path: Path, metrics: dict) -> None:
    write_manifest(str(tmp_path), manifest(**metrics))
    assert "<h2>Update</h2>" not in Path(write_report(RunDir(str(tmp_path)))).read_text()
    assert "verdict" not in summary(manifest(**metrics), str(tmp_path))
