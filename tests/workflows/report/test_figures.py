from __future__ import annotations

import re

from workflows.report import figures


def test_figures_take_every_colour_from_the_page():
    svg = figures.curves([1, 2], {"a": [1.0, float("nan")], "<b>": [3.0, 4.0]}, x_label="epoch", mark=2)
    svg += figures.intervals([("one", 0.5, 0.4, 0.6)], x_label="AUC", mark=0.5)
    svg += figures.band([0, 1], [0.5, 0.6], [0.4, 0.5], [0.6, 0.7], x_label="rate")
    assert not re.findall(r"#[0-9a-f]{6}\b(?=[;\"])", svg)
    assert "var(--series-1)" in svg
    assert "var(--series-2)" in svg
    assert "&lt;b&gt;" in svg
    assert "<style" not in svg
    assert svg.count("<svg viewBox=") == 3
