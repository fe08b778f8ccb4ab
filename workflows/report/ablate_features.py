"""The feature ablation: what each variant adds to the ranker, with intervals and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workflows.engine.text import DASH, decimal, estimate, interval, is_number, percent, signed
from workflows.report import figures
from workflows.report.contents import Figure, Table, intervals

SCOPES = {
    "truth_cold": "Cold items, against the true click probabilities of users × items",
    "test_cold": "Cold items, clicks of the test split",
    "test": "All items, clicks of the test split",
}


@dataclass(frozen=True)
class Comparison:
    """The variants on one set of rows."""

    title: str
    sentences: list[str]
    table: Table
    figures: list[Figure]


def comparisons(metrics: dict[str, Any]) -> list[Comparison]:
    """Returns what `metrics/ablate_features.json` compares; any of it may be missing."""
    scopes = [(title, metrics.get(key) or {}) for key, title in SCOPES.items()]
    return [
        Comparison(
            title, list(scope.get("sentences") or []), _table(scope["variants"]), _gains(title, scope["variants"])
        )
        for title, scope in scopes
        if scope.get("variants")
    ]


def gate(metrics: dict[str, Any]) -> tuple[Table, list[Figure]] | None:
    """Returns AUC by the share of items that get a caption."""
    points = metrics.get("gate_curve") or []
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


def _table(variants: dict[str, dict[str, Any]]) -> Table:
    columns = ["variant", "seeds", "AUC", "95% interval", f"gain over {_base(variants)}", "95% interval"]
    with_share = any("share" in variant for variant in variants.values())
    rows = [
        [
            name,
            str(len(variant.get("seeds") or [])),
            *estimate(variant, "auc"),
            *estimate(variant, "gain", signed),
            *([percent(variant.get("share")), _percents(variant.get("share_interval"))] if with_share else []),
        ]
        for name, variant in variants.items()
    ]
    return Table([*columns, *(["share of the gap", "95% interval"] if with_share else [])], rows)


def _gains(title: str, variants: dict[str, dict[str, Any]]) -> list[Figure]:
    label = f"gain in AUC over {_base(variants)}"
    return intervals(f"{title}: {label}, with 95% intervals", variants, "gain", label, show=signed, mark=0)


def _base(variants: dict[str, dict[str, Any]]) -> str:
    """Returns the variant without a gain, which the others gain over."""
    return next((name for name, variant in variants.items() if "gain" not in variant), "the base")


def _percents(bounds: Any) -> str:
    return f"{percent(bounds[0])} to {percent(bounds[1])}" if interval(bounds) else DASH
