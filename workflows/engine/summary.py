"""A manifest as text for the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from serving.settings import STAGES as SERVED
from storage import files
from storage.manifest import Manifest
from workflows.engine.text import count, decimal, part
from workflows.engine.update import verdict_of

KINDS = (  # title of a table, the metric that selects its rows, and its columns
    ("clicks, test", "auc", ("auc", "user_auc", "log_loss", "ne", "calibration")),
    (
        "next items, test",
        "coverage@10",
        ("recall@10", "ndcg@10", "recall@10 as is", "ndcg@10 as is", "coverage@10", "cold_recall@10"),
    ),
)


def summary(manifest: Manifest, root: str) -> str:
    """Returns stages with counts and speeds, headline metrics, errors, the path of the report, and what to do next."""
    columns = ("rows in", "rows out", "rejected", "degraded", "seconds", "rows/s")
    table = Table("stage", "state", *(Column(name, justify="right") for name in columns), box=None, pad_edge=False)
    table.title, table.title_justify = f"{manifest.name} — {root}", "left"
    for name, entry in manifest.stages.items():
        counts = (entry.rows_in, entry.rows_out, entry.rejected, entry.degraded)
        numbers = [*map(count, counts), decimal(entry.seconds, 1), count(entry.rows_per_second)]
        table.add_row(name, entry.state, *numbers)
    out = io.StringIO()
    console = Console(file=out, width=110, highlight=False)
    console.print(table)
    evaluate = manifest.stages.get("evaluate")
    if evaluate is not None and evaluate.state == "complete":
        for metrics in _tables(evaluate.metrics):
            console.print(metrics)
    if (found := verdict_of(manifest)) is not None:
        console.print(f"verdict: {found[0]}", markup=False)
        for reason in found[1]:
            console.print(f"  {reason}", markup=False, soft_wrap=True)
    for line in manifest.left_out:
        console.print(line, markup=False, soft_wrap=True)
    for name, entry in manifest.stages.items():
        if entry.error:
            console.print(f"{name} failed: {entry.error}", markup=False)
        if entry.state == "interrupted":
            console.print(f"{name} was interrupted: the same `tesserec run` goes on from there", markup=False)
    report = files.join(root, "report", "index.html")
    if files.exists(report):
        console.print(f"report: {report}", markup=False, soft_wrap=True)
    if all(name in manifest.stages and manifest.stages[name].state == "complete" for name in SERVED):
        console.print(f"next: tesserec serve {root}", markup=False, soft_wrap=True)
    return out.getvalue().rstrip()


def _tables(metrics: dict[str, Any]) -> Iterator[Table]:
    """Yields the tables of click models and of recommenders, but for columns that nobody has; more is in the report."""
    for title, decisive, all_columns in KINDS:
        rows = {
            name: values | {f"{key} as is": value for key, value in part(values, "as_is").items()}
            for name, values in metrics.items()
            if isinstance(values, dict) and decisive in values
        }
        if not rows:
            continue
        columns = [column for column in all_columns if any(column in values for values in rows.values())]
        table = Table(title, *(Column(name, justify="right") for name in columns), box=None, pad_edge=False)
        for name, values in rows.items():
            table.add_row(name, *(decimal(values[column]) if column in values else "" for column in columns))
        yield table
