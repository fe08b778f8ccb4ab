"""A manifest as lines for a person."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from rich.table import Table

from storage import files
from storage.manifest import Manifest


def summary(manifest: Manifest, root: str) -> str:
    """Stages with their counts and speeds, the headline metrics, and where the report is."""
    table = Table(title=f"{manifest.name} — {root}", title_justify="left", box=None, pad_edge=False)
    for column in ("stage", "state", "rows in", "rows out", "rejected", "degraded", "seconds", "rows/s"):
        table.add_column(column, justify="left" if column in ("stage", "state") else "right")
    for name, entry in manifest.stages.items():
        counts = (entry.rows_in, entry.rows_out, entry.rejected, entry.degraded)
        numbers = [f"{count:,}" for count in counts]
        table.add_row(name, entry.state, *numbers, f"{entry.seconds:,.1f}", f"{entry.rows_per_second:,.0f}")
    out = io.StringIO()
    console = Console(file=out, width=110, highlight=False)
    console.print(table)
    evaluate = manifest.stages.get("evaluate")
    if evaluate is not None and evaluate.state == "complete":
        console.print(_metrics(evaluate.metrics))
    for name, entry in manifest.stages.items():
        if entry.error:
            console.print(f"{name} failed: {entry.error}", markup=False)
    report = files.join(root, "report", "index.html")
    if files.exists(report):
        console.print(f"report: {report}", markup=False, soft_wrap=True)
    return out.getvalue().rstrip()


def _metrics(metrics: dict[str, dict[str, Any]]) -> Table:
    columns = sorted({key for values in metrics.values() for key, value in values.items() if _is_number(value)})
    table = Table(box=None, pad_edge=False)
    table.add_column("test metrics")
    for column in columns:
        table.add_column(column, justify="right")
    for name, values in metrics.items():
        if not any(map(_is_number, values.values())):
            continue  # slices are tables of their own, which the report shows
        cells = [f"{values[c]:.4f}" if _is_number(values.get(c)) else "" for c in columns]
        table.add_row(name, *cells)
    return table


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
