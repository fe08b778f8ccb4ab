"""The contents of the page as plain values for the template; a section without data is empty."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, get_args

import polars as pl
from markupsafe import Markup

from storage import files
from storage.manifest import State
from workflows.engine.registry import ORDER
from workflows.engine.text import DASH, count, decimal, duration, interval, is_number, listing, percent, signed
from workflows.report import figures
from workflows.report.source import Source

EXAMPLES = 3
SCORES = {"auc": "AUC", "user_auc": "per-user AUC", "log_loss": "log-loss", "ne": "NE", "calibration": "calibration"}


@dataclass(frozen=True)
class Tile:
    """A key number with its label and a note."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """An inline SVG with its title and a description as text."""

    title: str
    text: str
    svg: Markup


@dataclass(frozen=True)
class Table:
    """A table of formatted text; the first cell of a row is its name."""

    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Reason:
    """The number of rows of one stage rejected or degraded for one reason, with up to three examples."""

    stage: str
    severity: str
    code: str
    rows: int
    examples: list[tuple[str, str]]  # item_id, detail


def problems(source: Source) -> list[str]:
    """Returns one sentence per reason why the page is incomplete or out of date."""
    entries = source.stages
    by_state = {state: [name for name in entries if entries[name].state == state] for state in get_args(State)}
    newest = dict(zip(entries, accumulate((entry.started for entry in entries.values()), max), strict=True))
    named = {
        "Still running, or killed before the end": by_state["running"],
        "Interrupted": by_state["interrupted"],
        "Not run yet": by_state["pending"],
        "Older than a stage before them, with the numbers of an earlier attempt": [
            name for name in by_state["complete"] if entries[name].started < newest[name]
        ],
    }
    failed = [f"{name} failed: {entries[name].error or 'no reason was recorded'}" for name in by_state["failed"]]
    return failed + [f"{problem}: {listing(names)}." for problem, names in named.items() if names]


def left_out(source: Source) -> str:
    """Returns the names of the stages that are not in the definition, as one string."""
    return listing([name for name in ORDER if name != "report" and name not in source.stages])


def tiles(source: Source) -> Iterator[Tile]:
    """Yields the key numbers of the stages that have run."""
    entries, metrics = source.manifest.stages, source.metrics("evaluate")
    last = next((name for name in ("interpret", "ingest") if source.complete(name)), None)
    if last:
        bad = sum(entries[name].rejected for name in ("ingest", "interpret") if source.complete(name))
        note = f"{count(bad)} rejected, {count(entries[last].degraded)} degraded"
        yield Tile("items", count(entries[last].rows_out), note)
    if log := source.metrics("ingest").get("interactions"):
        yield Tile("interactions", count(log["rows_out"]), f"{count(sum(log['dropped'].values()))} dropped")
    if card := source.fit("quantize").get("scorecard"):
        note = f"{percent(card.get('collision_share_after'))} after deduplication"
        yield Tile("SID collisions", percent(card.get("collision_share")), note)
    if ranker := metrics.get("ranker"):
        popularity = decimal(metrics.get("popularity", {}).get("auc"), 3)
        yield Tile("AUC of the ranker", decimal(ranker.get("auc"), 3), f"popularity {popularity}")
    if gain := metrics.get("auc_gain"):
        note = f"95% interval {interval(gain.get('interval'), 3) or DASH}"
        yield Tile(f"AUC gain over {gain['over']}", signed(gain.get("mean"), 3), note)
    if generator := metrics.get("generator"):
        sasrec = metrics.get("sasrec", {}).get("ndcg@10")
        note = f"SASRec {decimal(sasrec)}" if is_number(sasrec) else ""
        yield Tile("NDCG@10 of the generator", decimal(generator.get("ndcg@10")), note)
    if recall := retrieval(source):
        row = recall.rows[0]
        yield Tile(f"{recall.columns[1].lower()} of the retriever", row[1], f"popularity {recall.rows[1][1]}")
    done = sum(entry.state == "complete" for entry in source.stages.values())
    seconds = sum(entry.seconds for entry in source.stages.values())
    yield Tile("time", duration(seconds), f"{done} of {len(source.stages)} stages complete")


def trend(title: str, history: list[dict[str, Any]], x: str, keys: dict[str, str], mark: float | None = None) -> Figure:
    """Returns a figure of one or two metrics over the reports of a fit.

    Args:
        title: title of the figure.
        history: at least one report, in order.
        x: key of the positions.
        keys: keys of one or two metrics, with the names to show.
        mark: position of a vertical line.
    """
    ends = [(key.replace("_", " "), *(decimal(row.get(key)) for row in (history[0], history[-1]))) for key in keys]
    text = "; ".join(f"{name} from {first} to {last}" for name, first, last in ends)
    positions, *lines = ([row.get(key, float("nan")) for row in history] for key in (x, *keys))
    svg = figures.curves(positions, dict(zip(keys.values(), lines, strict=True)), x_label=x, mark=mark)
    return Figure(title, f"{text}; {x} {history[0].get(x)} to {history[-1].get(x)}", svg)


def intervals(
    title: str,
    by_name: dict[str, dict[str, Any]],
    metric: str,
    x_label: str,
    *,
    show: Callable[[Any], str] = decimal,
    mark: float | None = None,
) -> list[Figure]:
    """Returns a figure of a metric with its intervals, one row for each name that has both; none without rows.

    Args:
        title: title of the figure.
        by_name: metrics by the names to show.
        metric: key of the values; those of the intervals end in `_interval`.
        x_label: label of the values.
        show: formats a value.
        mark: position of a vertical line.
    """
    rows = [
        (name, values[metric], *values[f"{metric}_interval"])
        for name, values in by_name.items()
        if is_number(values.get(metric)) and interval(values.get(f"{metric}_interval"))
    ]
    if not rows:
        return []
    text = "; ".join(f"{name} {show(value)} ({interval([low, high])})" for name, value, low, high in rows)
    return [Figure(title, text, figures.intervals(rows, x_label=x_label, mark=mark))]


def ranker_figures(source: Source) -> list[Figure]:
    """Returns the training curves of the ranker, with a mark at the epoch that was kept."""
    history = source.fit("rank").get("history") or []
    names = {"train_log_loss": "training", "valid_log_loss": "validation"}
    keys = {key: name for key, name in names.items() if any(key in epoch for epoch in history)}
    if not keys:
        return []
    return [trend("Ranker: log-loss per epoch", history, "epoch", keys, source.metrics("rank").get("epoch"))]


def splits(source: Source) -> Table | None:
    """Returns the sizes of the splits and their shares of positives and of users and items unseen in training."""
    metrics = source.metrics("features")
    names = [name for name in ("train", "valid", "test") if isinstance(metrics.get(name), dict)]
    shares = ("positive_rate", "cold_users", "cold_items")
    rows = [
        [name, count(metrics[name].get("rows")), *(percent(metrics[name].get(key)) for key in shares)] for name in names
    ]
    return Table(["split", "examples", "positives", "unseen users", "unseen items"], rows) if rows else None


def scores(source: Source) -> Table | None:
    """Returns a table of every scorer of the test split by every metric."""
    metrics = _scorers(source)
    if not metrics:
        return None
    columns = ["scorer", *SCORES.values()]
    rows = [[name, *(decimal(values.get(key)) for key in SCORES)] for name, values in metrics.items()]
    if any("auc_interval" in values for values in metrics.values()):
        columns.append("95% interval of AUC")
        for row, values in zip(rows, metrics.values(), strict=True):
            row.append(interval(values.get("auc_interval")))
    return Table(columns, rows)


def slices(source: Source) -> Table | None:
    """Returns a table of every scorer on every slice of the test split."""
    rows = [
        [name.replace("_", " "), scorer, *(count(part.get(key)) for key in ("rows", "positives"))]
        + [decimal(values.get(key)) for key in SCORES]
        for name, part in (source.metrics("evaluate").get("slices") or {}).items()
        for scorer, values in part.items()
        if isinstance(values, dict)
    ]
    return Table(["slice", "scorer", "examples", "positives", *SCORES.values()], rows) if rows else None


def score_figures(source: Source) -> list[Figure]:
    """Returns a figure of the AUCs with their intervals."""
    return intervals("AUC on the test split, with 95% intervals", _scorers(source), "auc", "AUC")


def retrieval(source: Source) -> Table | None:
    """Returns recall@K of the retriever and of popularity."""
    metrics = source.metrics("evaluate").get("retriever") or {}
    cuts = [key for key in metrics if key.startswith("recall@")]
    if not cuts:
        return None
    rows = [
        [name, *(percent(metrics.get(f"{prefix}{cut}")) for cut in cuts)]
        for name, prefix in (("retriever", ""), ("popularity", "popularity_"))
    ]
    return Table(["candidates from", *(cut.capitalize() for cut in cuts)], rows)


def dropped(source: Source) -> Table | None:
    """Returns the number of events that ingest dropped, by reason."""
    log = source.metrics("ingest").get("interactions")
    if not log:
        return None
    rows = [
        [reason, count(number), percent(number / max(log["rows_in"], 1))]
        for reason, number in log["dropped"].items()
        if number
    ]
    return Table(["reason", "events", "of the log"], rows)


def rejects(source: Source) -> list[Reason]:
    """Returns rejected and degraded rows by stage, severity and code with examples, those of failed stages included."""
    reasons = []
    for stage in source.stages:
        uri = source.run.uri("rejects", stage)
        if not files.exists(uri):
            continue
        groups = (
            pl.DataFrame(files.read_table(uri))
            .sort("severity", "code", "item_id", "detail", descending=[True, False, False, False])
            .group_by("severity", "code", maintain_order=True)
            .agg(pl.len().alias("rows"), pl.col("item_id", "detail").head(EXAMPLES))
        )
        for severity, code, rows, ids, details in groups.iter_rows():
            reasons.append(Reason(stage, severity, code, rows, list(zip(ids, details, strict=True))))
    return reasons


def _scorers(source: Source) -> dict[str, dict[str, Any]]:
    return {
        name: values
        for name, values in source.metrics("evaluate").items()
        if isinstance(values, dict) and "auc" in values
    }
