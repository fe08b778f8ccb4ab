"""Validate the catalogue and write it in canonical form; bad rows leave with their reasons."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from operators.log.partitions import About, check_liked, kept_cuts, moments, read_about, write_about
from storage import blocks, files, tables
from storage.errors import UserError
from storage.manifest import require_manifest
from storage.run import RunDir
from workflows.catalogs.survey import Survey, sample
from workflows.engine.stage import SMALL_CATALOGUE, Context, Result, Stage
from workflows.stages.ingest import events, items, pieces
from workflows.stages.ingest.earlier import carried, states_of, write_read
from workflows.stages.ingest.given import widths_of
from workflows.stages.ingest.pieces import Work
from workflows.stages.ingest.settings import Config
from workflows.stages.ingest.texts import are_whole

STEPS = 5
START = datetime(1970, 1, 1, tzinfo=UTC)


class IngestStage(Stage[Config]):
    """Validate the catalogue and write it in canonical form; bad rows leave with their reasons."""

    config_type = Config
    version = 9
    seeded = False

    def check_data(self, config: Config, catalog: Survey) -> list[str]:
        """Finds ids that are none, and labels and timestamps that are none.

        Raises:
            UserError: too many items have no id of their own, labels lie outside 0 … 1 or below what counts as liked,
                their column is not there, or no timestamp or no label of a sample can be read.
        """
        if catalog.unnamed > config.max_reject_share * catalog.items:
            raise UserError(
                f"{catalog.unnamed:,} of {catalog.items:,} items have no item_id, or that of another item: give each "
                "its own, or raise stages.ingest.max_reject_share."
            )
        if not config.log:
            return []
        if (log_uri := tables.find(catalog.uri, "interactions")) is None:
            return []
        config = config.reading(catalog.uri)
        least, (low, high) = config.positive_from, catalog.labels or (0.0, 1.0)
        if config.label != "label" and config.label not in catalog.columns:
            raise UserError(f"stages.ingest.label is {config.label!r}: the log has {', '.join(catalog.columns)}.")
        if config.label not in catalog.columns:
            like = [name for name in catalog.columns if name.lower() in ("label", *events.RATINGS)]
            if least is not None:
                named = (
                    f"name them by stages.ingest.label, such as {like[0]}" if like else "remove that, or add a label"
                )
                raise UserError(f"stages.ingest.positive_from is set, and the log has no labels: {named}.")
            if like and like[0].lower() == "label" and events.number(sample(log_uri)[like[0]]).count():
                remedy = "if it tells what was liked, rename it to label; else give it another name"
                raise UserError(f"The log has a column {like[0]!r}: {remedy}.")
        if least is not None and catalog.labels and high < least:
            raise UserError(
                f"No label of the log reaches stages.ingest.positive_from, {least:g}: the highest is {high:g}."
            )
        if least is None and not 0 <= low <= high <= 1:
            raise UserError(
                f"The labels of the log go from {low:g} to {high:g}: write stages.ingest.positive_from, the least one "
                "that counts as liked, or labels of 1 and 0."
            )
        rows = config.with_labels(sample(log_uri))
        rows = rows.drop_nulls([name for name in ("timestamp", "label") if name in rows.columns])
        events.canonical_events(rows, log_uri, order=tables.timestamps(catalog.uri) == "order")
        return []

    def run(self, config: Config, context: Context) -> Result:
        """Writes `catalog/items`, `log` (where the catalogue has one) and `rejects/ingest`.

        Raises:
            UserError: a table has nothing that can be used, the log loses more events than allowed, or later stages
                cannot learn from it.
        """
        work = _work(config, context)
        if not files.exists(work.folder):  # what is there is of another attempt or state of the catalogue
            for parts in (("catalog",), ("log",), ("rejects", "ingest")):
                files.remove(context.run.uri(*parts))
        order = tables.timestamps(context.catalog)
        metrics: dict[str, Any] = {} if order is None else {"timestamps": order}
        alone = len(work.items) == 1 and blocks.rows_about(work.items_uri) <= SMALL_CATALOGUE
        read = _pieces(context, 0, "read", partial(pieces.read_items, work), len(work.items), here=alone)
        (index,) = _pieces(context, 1, "index", partial(pieces.index_items, work), 1, here=alone)
        if not index["items"]:
            bad = [line for part in read for line in part["bad"]]
            raise items.no_usable(work.items_uri, bad, sum(part["rows"] for part in read))
        notes = [note for part in read for note in part["notes"]][: events.EXAMPLES]
        if work.form is not None:
            found, more = _write_log(work, context, [name for part in read for name in part["ids"]])
            metrics["interactions"] = found
            notes += more
        for note in notes:
            context.log(f"ingest: {note}")
        written = _pieces(context, 4, "write", partial(pieces.write_items, work, read), len(work.items), here=alone)
        usable, rejected, degraded = (sum(part[key] for part in written) for key in ("usable", "rejected", "degraded"))
        if usable != index["items"]:
            raise RuntimeError(f"{index['items']} items are usable, and {usable} were written")
        return Result(usable + rejected, usable, rejected, degraded, metrics)


def _work(config: Config, context: Context) -> Work:
    """Decides by the first rows of both tables how all of them are read, and into how many partitions the log goes."""
    items_uri = tables.find(context.catalog, "items")
    assert items_uri is not None  # noqa: S101 - preflight has seen it
    rows, config = blocks.first(items_uri).rows, config.reading(context.catalog)
    work = Work(
        root=context.run.root,
        folder=context.run.uri("checkpoints", "ingest", context.fingerprint),
        config=config,
        items_uri=items_uri,
        items=blocks.sources(items_uri),
        whole_ids="item_id" in rows.columns and are_whole(rows["item_id"]),
        names_media=config.names_media(rows),
        widths=widths_of(rows, items_uri),
        known=rows.columns,
    )
    log_uri = tables.find(context.catalog, "interactions") if config.log else None
    if log_uri is None:
        return work
    first, log = blocks.first(log_uri), blocks.sources(log_uri)
    form = events.form_of(config.with_labels(first.rows), order=tables.timestamps(context.catalog) == "order")
    states = states_of(log)
    found = carried(config, context.catalog, form, log, states)
    return replace(
        work,
        log_uri=log_uri,
        log=log if found is None else found.left,
        states=states,
        earlier="" if found is None else found.run,
        carried=() if found is None else found.partitions,
        numbers=first.numbers,
        form=form,
        partitions=partitions_of(config, log_uri),
    )


def dropped_before(work: Work) -> dict[str, events.Loss]:
    """Returns what the run before had dropped of a log that is not read again."""
    if not work.carried:
        return {}
    entry = require_manifest(work.earlier).stages["ingest"]
    told: dict[str, int] = entry.metrics.get("interactions", {}).get("dropped", {})
    return {reason: events.Loss(count) for reason, count in told.items()}


def partitions_of(config: Config, log_uri: str) -> int:
    """Returns the number of partitions of a log; that of the run before, so that one answers to the other."""
    before = None if config.previous is None else read_about(RunDir(config.previous))
    return before.partitions if before else max(1, math.ceil(blocks.rows_about(log_uri) / config.partition_events))


def _pieces(
    context: Context, place: int, name: str, function: Callable[[int], Any], number: int, *, here: bool
) -> list[Any]:
    """Runs one of the steps, on Ray unless it has one piece."""
    folder = f"ingest/{context.fingerprint}/{name}"
    return context.pieces(function, range(number), name=folder, here=here, step=(place, STEPS))


def _write_log(work: Work, context: Context, ids: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Writes the log; returns its metrics, and what there is to say of it.

    Raises:
        UserError: it loses more events than allowed, or later stages cannot learn from it.
    """
    config = work.config
    dealt = _pieces(context, 2, "deal", partial(pieces.deal_events, work), len(work.log), here=len(work.log) <= 1)
    dropped = events.together([*(part["dropped"] for part in dealt), dropped_before(work)])
    kept = sum(part["kept"] for part in dealt)
    if not kept and not work.carried:
        events.check_dropped(work.log_uri, 0, dropped, config.max_dropped_share, ids)
    files_of = [part["files"] for part in dealt]
    one = work.partitions == 1
    written = _pieces(
        context, 3, "partition", partial(pieces.write_log_part, work, files_of), work.partitions, here=one
    )
    again, lost, before = (sum(part.get(name, 0) for part in written) for name in ("duplicates", "lost", "before"))
    dropped = events.together([dropped, {"duplicate_event": events.Loss(again), "unknown_item": events.Loss(lost)}])
    kept += before
    events.check_dropped(work.log_uri, kept - again, dropped, config.max_dropped_share, ids)
    about = write_about(work.run, written, written[0]["columns"])
    if about.events != kept - again:
        raise RuntimeError(f"{kept} events were dealt to partitions, {about.events} and {again} duplicates came there")
    assert work.form is not None  # noqa: S101 - for the type checker
    write_read(work.run, config, work.form, work.states)
    notes = [note for part in dealt for note in part["notes"]][: events.EXAMPLES]
    notes += check_learnable(about, context)
    if work.carried:
        notes.append(f"{before} events are those of {work.earlier}, and {kept - before} were read")
    if told := events.told(dropped):
        notes.append(f"dropped of {context.catalog}'s interactions {told}")
    counts = {reason: loss.events for reason, loss in dropped.items()}
    metrics = {
        "rows_in": about.events + sum(counts.values()),
        "rows_out": about.events,
        "dropped": counts,
        "first": _moment(about.first).isoformat(),  # in UTC; where timestamps only order, so do these
        "last": _moment(about.last).isoformat(),
    }
    return metrics, notes


def _moment(micros: int) -> datetime:
    return START + timedelta(microseconds=micros)


def check_learnable(about: About, context: Context) -> list[str]:
    """Checks that later stages can learn from the log of a run, before captions and embeddings are paid for.

    All events count here. Later stages check those about items that interpret has not rejected.

    Returns:
        What there is to say of it: its time, or that its labels say nothing.

    Raises:
        UserError: a later stage splits the log, and all labels are 0, or a part of the split would be empty.
    """
    first, last = (f"{_moment(micros):%Y-%m-%d %H:%M:%S}" for micros in (about.first, about.last))
    notes = [f"{about.events} events of {about.users} users from {first} to {last} UTC"]
    if tables.timestamps(context.catalog) == "order":
        notes = ["the timestamps tell the order of a user's events, not the time: they do not compare users"]
    if about.labels and about.positives == about.events:
        notes.append("every label is 1, which says nothing: the log is read as positives alone")
    if context.splits:
        check_liked(about.positives)
        kept_cuts(context.run.uri("log"), context.split, partial(moments, context.run, about), about.events)
    return notes
