"""The evidence: what each arm of the ablation adds to the ranker, with intervals and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workflows.report import figures
from workflows.report.contents import Figure, Table
from workflows.report.text import DASH, decimal, interval, is_number, percent

SCOPES = {
    "truth_cold": "Cold items, against the true click probabilities of users × items",
    "test_cold": "Cold items, clicks of the test split",
    "test": "All items, clicks of the test split",
}


@dataclass(frozen=True)
class Comparison:
    """The arms on one set of rows."""

    title: str
    sentences: list[str]
    table: Table
    figures: list[Figure]


def comparisons(found: dict[str, Any]) -> list[Comparison]:
    """What `metrics/ablate_features.json` compares; any of it may be missing."""
    scopes = [(title, found.get(key) or {}) for key, title in SCOPES.items()]
    return [
        Comparison(title, list(scope.get("sentences") or []), _table(scope["arms"]), _gains(title, scope["arms"]))
        for title, scope in scopes
        if scope.get("arms")
    ]


def gate(found: dict[str, Any]) -> tuple[Table, list[Figure]] | None:
    """AUC by the share of items that get a caption."""
    points = found.get("gate_curve") or []
    if not points:
        return None
    rows = [
        [percent(point["rate"]), decimal(point["auc"]), interval(point.get("interval")) or DASH] for point in points
    ]
    table = Table(["trigger rate", "AUC", "95% interval"], rows)
    drawn = [point for point in points if interval(point.get("interval")) and is_number(point["auc"])]
    if len(drawn) < 2:
        return table, []
    lows, highs = zip(*(point["interval"] for point in drawn), strict=True)
    rates, aucs = ([point[key] for point in drawn] for key in ("rate", "auc"))
    svg = figures.band(rates, aucs, lows, highs, x_label="share of items with a caption")
    text = "; ".join(f"{percent(rate)} {decimal(auc, 3)}" for rate, auc in zip(rates, aucs, strict=True))
    return table, [Figure("AUC by trigger rate of the captioning gate, with 95% intervals", text, svg)]


def _table(arms: dict[str, dict[str, Any]]) -> Table:
    columns = ["arm", "seeds", "AUC", "95% interval", f"gain over {_base(arms)}", "95% interval"]
    with_share = any("share" in arm for arm in arms.values())
    rows = [
        [
            name,
            str(len(arm.get("seeds") or [])),
            decimal(arm.get("auc")),
            interval(arm.get("auc_interval")) or DASH,
            f"{arm['gain']:+.4f}" if is_number(arm.get("gain")) else DASH,
            interval(arm.get("gain_interval")) or DASH,
            *([percent(arm.get("share")), _percents(arm.get("share_interval"))] if with_share else []),
        ]
        for name, arm in arms.items()
    ]
    return Table([*columns, *(["share of the gap", "95% interval"] if with_share else [])], rows)


def _gains(title: str, arms: dict[str, dict[str, Any]]) -> list[Figure]:
    rows = [
        (name, arm["gain"], *arm["gain_interval"])
        for name, arm in arms.items()
        if is_number(arm.get("gain")) and interval(arm.get("gain_interval"))
    ]
    if not rows:
        return []
    text = "; ".join(f"{name} {gain:+.4f} ({interval([low, high])})" for name, gain, low, high in rows)
    label = f"gain in AUC over {_base(arms)}"
    return [Figure(f"{title}: {label}, with 95% intervals", text, figures.intervals(rows, x_label=label, mark=0))]


def _base(arms: dict[str, dict[str, Any]]) -> str:
    """The arm without a gain is what the others gain over."""
    return next((name for name, arm in arms.items() if "gain" not in arm), "the base")


def _percents(bounds: Any) -> str:
    return f"{percent(bounds[0])} to {percent(bounds[1])}" if interval(bounds) else DASH
