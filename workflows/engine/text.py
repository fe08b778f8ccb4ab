"""Numbers formatted for terminal, log and page; a missing value, or one that is not a number, becomes a dash."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

DASH = "–"


def is_number(value: object) -> bool:
    """Returns whether a value can be printed as a number: finite and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def part(values: dict[str, Any], key: str) -> dict[str, Any]:
    """Returns the metrics under a key, which may be missing."""
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def count(value: Any) -> str:
    """Returns a whole number with separated thousands.

    >>> count(12345)
    '12,345'
    """
    return f"{value:,.0f}" if is_number(value) else DASH


def decimal(value: Any, digits: int = 4) -> str:
    """Returns a number with a fixed number of digits after the point.

    >>> decimal(0.71234), decimal(float("nan"))
    ('0.7123', '–')
    """
    return f"{value:.{digits}f}" if is_number(value) else DASH


def signed(value: Any, digits: int = 4) -> str:
    """Returns a change, with its sign.

    >>> signed(0.0312)
    '+0.0312'
    """
    return f"{value:+.{digits}f}" if is_number(value) else DASH


def percent(value: Any) -> str:
    """Returns a share in percent; a small one that would round to zero is shown as `<0.1%`.

    >>> percent(0.034), percent(0.0001)
    ('3.4%', '<0.1%')
    """
    if is_number(value) and 0 < value < 0.0005:
        return "<0.1%"
    return f"{value:.1%}" if is_number(value) else DASH


def interval(value: Any, digits: int = 4) -> str:
    """Returns an interval [low, high] as text; empty without one.

    >>> interval([0.7, 0.8], 2)
    '0.70 to 0.80'
    """
    if isinstance(value, Sequence) and len(value) == 2 and all(map(is_number, value)):
        return f"{decimal(value[0], digits)} to {decimal(value[1], digits)}"
    return ""


def estimate(values: dict[str, Any], metric: str, show: Callable[[Any], str] = decimal) -> list[str]:
    """Returns a metric and its interval, as two cells of a table.

    >>> estimate({"auc": 0.7, "auc_interval": [0.6, 0.8]}, "auc"), estimate({}, "auc")
    (['0.7000', '0.6000 to 0.8000'], ['–', '–'])
    """
    return [show(values.get(metric)), interval(values.get(f"{metric}_interval")) or DASH]


def duration(seconds: Any) -> str:
    """Returns seconds in the two largest units.

    >>> duration(4.25), duration(200), duration(7380)
    ('4.2 s', '3 min 20 s', '2 h 3 min')
    """
    if not is_number(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def listing(names: Sequence[str]) -> str:
    """Returns names joined for a sentence.

    >>> listing(["features", "rank", "evaluate"])
    'features, rank and evaluate'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
