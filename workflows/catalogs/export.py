"""A catalogue out of a run and the store of its service: what `tesserec load` turns the other way; without Ray.

Rows of a store come in no order: they are laid down in files, dealt to pieces by the hash of their user, and a piece is
worked on at a time. The run's log is partitions already.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from operators.log.events import SECOND_US
from operators.log.partitions import CONTEXT, open_log, read_events
from serving.stores.base import DELETED, Event, Impression, Item, ItemStore
from serving.stores.opening import open_store
from storage import exchange, files, tables
from storage.hashing import hash_ids
from storage.manifest import require_finished, require_manifest
from storage.media.sources import placed
from storage.run import RunDir
from workflows.catalogs.canonical import LOG, TIMESTAMP, require_empty, write_about

ROWS = 1 << 19  # of a store that are held at once
ITEM_ROWS = 1 << 12
MOVED = ("interactions", "media", "items.parquet")  # into place; the last one makes a catalogue of the folder
STORED = {**LOG, "kind": pa.string(), "recommendation_id": pa.string()}  # of interactions that a store gave
EVENTS = pa.schema(
    [(name, pa.string()) for name in ("user_id", "event_id", "item_id", "kind", "recommendation_id")]
    + [("weight", pa.float64()), ("timestamp", TIMESTAMP)]
)
SHOWN = pa.schema(
    [(name, pa.string()) for name in ("user_id", "recommendation_id", "item_id")]
    + [("propensity", pa.float32()), ("timestamp", TIMESTAMP)]
)


def export(
    root: str, store_uri: str, directory: str, minutes: float, catalog: str, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Writes a run's items and log, and what a store has kept since, as a catalogue; returns a summary.

    An answer is judged once its minutes are over. All that is younger is left for the next export, so that no answer
    stays without judgement; answers to visitors are left out, and what was kept of a user before they were erased.
    Posted items come with their pictures, deleted ones do not come.

    Args:
        root: URI of the run directory.
        store_uri: see `serving.stores.opening.open_store`.
        directory: of the new catalogue, whose items table appears when all else is there.
        minutes: within which an item of an answer has to be acted on; else it is a row with label 0.
        catalog: URI of the run's own catalogue, where its media lie.
        progress: called with the number of pieces done and their total.

    Raises:
        UserError: the run has no finished stage `features`, the store cannot be used, or the directory is not empty.
    """
    now, run, directory = time.time_ns() // 1_000, RunDir(files.absolute(root)), files.absolute(directory)
    require_finished(run.root, ["features"], "cannot be exported")
    _remove_unfinished(directory)
    require_empty(directory)
    log, window = open_log(run), round(minutes * 60_000_000)
    store, work = open_store(store_uri), f"{directory.rstrip('/')}.{uuid.uuid4().hex}.tmp"
    events, shown, target = (files.join(work, part) for part in ("events", "shown", "interactions"))
    try:
        since = log.about.last
        # Events last: each of them that is older than `now` has come in by then.
        answers = (_shown(part, since, now - window) for part in store.every_impression())
        total = files.write_parts(shown, chain([SHOWN.empty_table()], answers), part_rows=ROWS)
        acts = (_events(part, since, now) for part in store.every_event())
        total += files.write_parts(events, chain([EVENTS.empty_table()], acts), part_rows=ROWS)
        gone = store.forgotten()
        forgotten = pl.DataFrame(
            {"user_id": list(gone), "gone": list(gone.values())}, {"user_id": pl.String, "gone": pl.Int64}
        )
        pieces = max(1, math.ceil(total / ROWS))
        dealt = [_dealt(uri, schema, pieces) for uri, schema in ((events, EVENTS), (shown, SHOWN))]
        context = {name.removeprefix(CONTEXT): pa.float32() for name in log.about.context}
        schema, count = pa.schema({**STORED, **context}), 0
        known = pl.DataFrame(run.read_table("catalog", "items", columns=["item_id"]))
        known = known.with_columns(item=pl.Series(hash_ids(known["item_id"].to_list())))

        def parts() -> Iterator[pl.DataFrame]:
            for number in range(log.about.partitions):
                rows = pl.DataFrame(read_events(run, number)).join(known, on="item", how="left")
                yield rows.join(pl.DataFrame(log.users(number)), on="user", how="left").drop("user", "item")
            for number in range(pieces):
                acts, answers = (pl.DataFrame(exchange.collect(uris, number)) for uris in dealt)
                rows = judged(acts, answers, window).drop(list(context), strict=False)
                yield rows.filter(pl.col("timestamp").dt.epoch("us") <= now - window)

        whole = dict[str, int]()  # files with a partition as it is
        for number, rows in enumerate(parts()):
            kept = rows.join(forgotten, on="user_id", how="left")
            kept = kept.filter(pl.col("gone").is_null() | (pl.col("timestamp").dt.epoch("us") > pl.col("gone")))
            if kept.height:
                files.write_part(files.part_uri(target, number), _table(kept.drop("gone"), schema))
            if number < log.about.partitions and kept.height == rows.height:
                whole[f"part-{number:05d}.parquet"] = number
            count += kept.height
            progress(number + 1, log.about.partitions + pieces)
        items, notes = _write_items(run.uri("catalog", "items"), work, catalog, store)
        manifest = require_manifest(run.root)
        times = manifest.stages["ingest"].metrics.get("timestamps", "real") if count else "none"
        told = {"source": f"the run {run.root} and a store", "timestamps": times, "notes": notes, "exported": now}
        told |= {"name": manifest.name}
        _put(work, directory, told, manifest.stages["ingest"].fingerprint, whole)
    finally:
        store.close()
        files.remove(work)
    return {"name": manifest.name, "items": items, "interactions": count, "notes": notes}


def judged(events: pl.DataFrame, shown: pl.DataFrame, window: int) -> pl.DataFrame:
    """Returns the events of some users as rows of a log, and the items that they were shown in vain.

    Args:
        events, shown: as `EVENTS` and `SHOWN`; the same row may come twice.
        window: microseconds, both ends included, within which an event with a weight, be it a dislike, answers.
    """
    events, shown = events.unique(["user_id", "event_id"]), shown.unique(["user_id", "recommendation_id", "item_id"])
    answers = events.filter(pl.col("weight") != 0).select("user_id", "item_id", "timestamp", answer="timestamp")
    passed = shown.sort("timestamp").join_asof(
        answers.sort("timestamp"),
        on="timestamp",
        by=["user_id", "item_id"],
        strategy="forward",
        tolerance=f"{window}us",
        check_sortedness=False,  # within a user and item it cannot be checked, which polars warns of
    )
    passed = passed.filter(pl.col("answer").is_null()).drop("answer")
    return pl.concat(
        [
            events.drop("event_id", "weight").with_columns(label=(events["weight"] > 0).cast(pl.Float32)),
            passed.with_columns(label=pl.lit(0, pl.Float32), kind=pl.lit("impression")),
        ],
        how="diagonal",
    )


def _events(events: Iterable[Event], since: int, until: int) -> pa.Table:
    """Returns the events of up to a time that a log lacks; of those that came in after its end it may have some."""
    rows = [event._asdict() for event in events if max(event.time, event.kept) > since and event.time <= until]
    return pa.Table.from_pylist([{**row, "timestamp": row["time"]} for row in rows], EVENTS)


def _shown(impressions: Iterable[Impression], since: int, until: int) -> pa.Table:
    rows = [
        {**each._asdict(), "timestamp": each.time, "item_id": item, "propensity": propensity}
        for each in impressions
        if each.shown
        if each.user_id is not None and since < each.time <= until
        for item, propensity in zip(each.items, each.propensities, strict=True)
    ]
    return pa.Table.from_pylist(rows, SHOWN)


def _dealt(uri: str, schema: pa.Schema, pieces: int) -> list[str]:
    """Deals the rows of a folder to pieces by user; returns the URIs of the files."""
    uris = list[str]()
    tables = (pa.Table.from_batches([batch]) for batch in files.batches(uri, schema.names, ROWS))
    for number, table in enumerate(chain([schema.empty_table()], tables)):
        uris.append(f"{uri}-{number}.arrow")
        exchange.deal(uris[-1], table, hash_ids(table["user_id"].to_pylist()) % pieces, pieces)
    return uris


def _table(rows: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    """Returns rows of a log as the catalogue has them: label 1 where it has none, and nulls."""
    rows = rows.rename({name: name.removeprefix(CONTEXT) for name in rows.columns})
    missing = [name for name in schema.names if name not in rows.columns]
    rows = rows.with_columns(pl.lit(1.0 if name == "label" else None).alias(name) for name in missing)
    rows = rows.select(schema.names).sort("user_id", "timestamp", "item_id", "label")
    return rows.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema)


def _write_items(source: str, work: str, catalog: str, store: ItemStore) -> tuple[int, list[str]]:
    """Writes the items of a run, and those that were posted, with media that resolve from elsewhere, too.

    Where the run has posted items by an export, those that were changed since then come from the store.

    Returns:
        Their number, and notes.
    """
    schema, written = files.dataset(source).schema, store.items_after(0)[1]
    posted = {item.item_id: item for item in written if item.about}  # but for those that are the run's by now
    taken = tables.about(catalog).get("exported", math.inf)
    away = [item_id for item_id, item in posted.items() if item.about["time"] * SECOND_US > taken]
    away += [item.item_id for item in written if item.state == DELETED]
    others = pa.array(away, schema.field("item_id").type)
    fs, path = files.filesystem(files.join(work, "items.parquet"))
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    items, moved = 0, False
    with fs.open(path, "wb") as sink, pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for batch in files.batches(source, schema.names, ITEM_ROWS):
            batch = batch.filter(pc.invert(pc.is_in(batch["item_id"], others)))
            for item_id in batch["item_id"].to_pylist():
                posted.pop(item_id, None)
            if "media" in schema.names:
                before = batch["media"].to_pylist()
                media = [each and [{**one, "uri": placed(one["uri"], catalog)} for one in each] for each in before]
                moved |= media != before
                column = schema.field("media")
                batch = batch.set_column(schema.names.index("media"), column, pa.array(media, column.type))
            writer.write_batch(batch)
            items += batch.num_rows
        new = list(posted.values())
        for start in range(0, len(new), ITEM_ROWS):
            rows = [_posted(item, store, work) for item in new[start : start + ITEM_ROWS]]
            writer.write_table(pa.Table.from_pylist(rows, schema))
            items += len(rows)
    note = f"media stay in {catalog}: name it in stages.interpret.fetch.roots, as tesserec update does"
    return items, [note] * moved


def _posted(item: Item, store: ItemStore, work: str) -> dict[str, Any]:
    """Returns an item as a row of a catalogue whose media lie in `work`, and puts its picture there."""
    picture, name = store.item_picture(item.item_id), f"media/{hash_ids([item.item_id])[0]:016x}.jpg"
    if picture is not None:
        files.write_bytes(files.join(work, name), picture)
    attributes = [(key, value) for key, values in item.about["attributes"].items() for value in values]
    media = [] if picture is None else [{"uri": name, "kind": "image"}]
    caption, interests, *_ = list(item.about["made"].values())[-1]  # of the models that were asked last
    texts = {**item.about, "caption": caption, "interests": interests}
    return {**texts, "item_id": item.item_id, "attributes": attributes, "media": media}


def _put(work: str, directory: str, told: dict[str, Any], ingested: str, whole: dict[str, int]) -> None:
    """Moves what was written into its place, and says in what state: an update does not read it again as it is.

    Args:
        work, directory: where it is and where it goes.
        told: what `catalog.json` says of the catalogue.
        ingested: fingerprint of the run's `ingest`.
        whole: names of files with a partition of that run as it is, and its number; one without rows has no file.
    """
    write_about(directory, **told)  # first: it tells whose the rest is
    for name in [name for name in MOVED[:-1] if files.exists(files.join(work, name))]:
        _move(work, directory, name)
    uris = {name: files.join(directory, "interactions", name) for name in whole}
    states = {name: tables.state(uri) if files.exists(uri) else None for name, uri in uris.items()}
    parts = {name: [number, states[name]] for name, number in whole.items()}
    write_about(directory, **told, partitions_of={"ingest": ingested, "parts": parts})
    _move(work, directory, MOVED[-1])


def _move(source: str, target: str, name: str) -> None:
    """Moves a file or folder into another folder; in an object store what is copied is left behind."""
    (fs, path), old = files.filesystem(target), files.filesystem(files.join(source, name))[1]
    if "file" in fs.protocol:
        fs.mv(old, f"{path}/{name}")
        return
    objects = fs.find(old)  # a folder is none, which a recursive move takes for one
    fs.copy(objects, [f"{path}/{name}{one.removeprefix(old)}" for one in objects])


def _remove_unfinished(directory: str) -> None:
    """Removes what an export has left that was killed while it moved: `catalog.json` without an items table."""
    files.probe(directory, write=True)
    fs, path = files.filesystem(directory)
    there = {name.rsplit("/", 1)[-1] for name in fs.ls(path, detail=False)} if fs.isdir(path) else set()
    if there <= {*MOVED[:-1], "catalog.json"} and "exported" in tables.about(directory):
        for name in (*MOVED[:-1], "catalog.json"):
            files.remove(files.join(directory, name))
