from __future__ import annotations

import re

from workflows.reporting import figures


def test_figures_take_every_colour_from_the_page():
    svg = figures.curves([1, 2], {"a": [1.0, float("nan")], "<b>": [3.0, 4.0]}, x_label="epoch", mark=2)
    svg += figures.intervals([("one", 0.5, 0.4, 0.6)], x_label="AUC")
    assert not re.findall(r"#[0-9a-f]{6}\b(?=[;\"])", svg)
    assert "var(--series-1)" in svg
    assert "var(--series-2)" in svg
    assert "&lt;b&gt;" in svg
    assert "<style" not in svg
    assert svg.count("<svg viewBox=") == 2
