from __future__ import annotations

import pytest

from workflows.engine import text


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.count(1234567), "1,234,567"),
        (text.count(None), "–"),
        (text.count(True), "–"),
        (text.decimal(float("inf")), "–"),
        (text.percent(0.0), "0.0%"),
        (text.percent(0.0001), "<0.1%"),
        (text.interval([0.1, float("nan")]), ""),
        (text.interval(None), ""),
        (text.duration(59.94), "59.9 s"),
        (text.duration(3600), "1 h 0 min"),
        (text.listing(["a"]), "a"),
        (text.listing(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_numbers_for_a_reader(shown, expected):
    assert shown == expected
