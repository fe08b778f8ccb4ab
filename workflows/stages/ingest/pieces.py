"""The work of ingest, piece by piece: parts of the tables, and partitions of the log.

1. Every part of the items table is brought into canonical form (`read_items`).
2. Of equal ids the first one stays, for which the hashes of all ids are compared (`index_items`).
3. Every part of the log is brought into canonical form and dealt to partitions by user (`deal_events`).
4. Every partition is written (`write_log_part`), and the items that stay (`write_items`).

No piece holds more than a block of a table, a partition, and hashes of all items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from operators.base import REJECTED, rejects_table
from operators.log.partitions import part_uri, read_events, rows_among
from operators.log.writing import extend_part, hashed, second_hash, write_part
from storage import blocks, exchange, files
from storage.blocks import Source
from storage.errors import UserError
from storage.hashing import hash_ids
from storage.run import RunDir
from workflows.catalogs.canonical import GIVEN
from workflows.stages.ingest import events, items, texts
from workflows.stages.ingest.settings import Config

FLUSHED = 1 << 19  # events that are dealt at once


@dataclass(frozen=True)
class Work:
    """What every piece has to know.

    Attributes:
        root: URI of the run.
        folder: URI of what the pieces hand on.
        config: settings of the stage.
        items_uri, items: the items table, and its parts.
        whole_ids: whether ids of items are whole numbers with `.0` behind them, see `texts.ids`.
        names_media: whether items get media by their ids.
        widths: of the vectors that the items table gives.
        known: columns that its first rows have.
        log_uri, log: likewise; empty without a log.
        states: of the log's files as they were listed, by their URIs; see `storage.tables.state`.
        numbers: columns of the log that are read as numbers, see `blocks.Scanned`.
        form: how the log is read.
        partitions: of the log.
        earlier, carried: the run before, and the numbers of its partitions that go on; empty where all is read.
    """

    root: str
    folder: str
    config: Config
    items_uri: str
    items: Sequence[Source]
    whole_ids: bool
    names_media: bool
    widths: dict[str, int]
    known: Sequence[str]
    log_uri: str = ""
    log: Sequence[Source] = ()
    states: Mapping[str, str] = field(default_factory=dict)
    numbers: dict[str, bool] | None = None
    form: events.Form | None = None
    partitions: int = 1
    earlier: str = ""
    carried: Sequence[int] = ()

    @property
    def run(self) -> RunDir:
        """The run."""
        return RunDir(self.root)

    def uri(self, kind: str, name: str) -> str:
        """Returns the URI of a file that pieces hand on."""
        return files.join(self.folder, kind, name)


def read_items(work: Work, number: int) -> dict[str, Any]:
    """Brings a part of the items table into canonical form, and hashes its ids.

    Returns:
        Its numbers of `blocks` and `rows`, some ids, and what there is to say.
    """
    found: dict[str, Any] = {"blocks": 0, "rows": 0, "ids": [], "notes": [], "bad": []}
    hashes = [pa.schema([("hash", pa.int64()), ("check", pa.int64())]).empty_table()]
    for block in blocks.blocks(work.items[number]):
        late = set(GIVEN).intersection(block.rows.columns).difference(work.known)
        texts.check_late(work.items[number].uri, late.intersection(texts.filled(block.rows).columns))
        raw = block.rows.drop(late)
        raw = work.config.with_media(raw, work.whole_ids) if work.names_media else raw
        table = items.canonical_items(raw, work.items_uri, work.whole_ids, work.widths).with_columns(row=block.before)
        ids = table["item_id"].drop_nulls().to_list()
        both = np.zeros((2, table.height), np.int64)  # 0 is no hash
        both[:, table["item_id"].is_not_null().to_numpy()] = hash_ids(ids), second_hash(ids)
        hashes.append(pa.table(list(both), hashes[0].column_names))
        name = _block(number, found["blocks"])
        files.write_json(work.uri("bad", f"{name}.json"), block.bad)
        table = table.with_columns(pl.col("row") + pl.int_range(pl.len()))
        files.write_part(work.uri("items", f"{name}.parquet"), table.to_arrow(compat_level=pl.CompatLevel.oldest()))
        found["blocks"] += 1
        found["rows"] += table.height
        found["ids"] = [*found["ids"], *ids[: events.EXAMPLES]][: events.EXAMPLES]
        found["notes"] += block.notes[: events.EXAMPLES - len(found["notes"])]
        found["bad"] = [*found["bad"], *block.bad][:1]
    exchange.deal(work.uri("ids", f"{number}.arrow"), pa.concat_tables(hashes))
    return found


def index_items(work: Work, number: int) -> dict[str, int]:
    """Finds the first row of every id, and the hashes of all ids: hands on `first` and `known`.

    Raises:
        UserError: two ids share a hash.
    """
    table = exchange.collect(work.uri("ids", f"{one}.arrow") for one in range(len(work.items)))
    hashes, check = (column.to_numpy() for column in table.columns)
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    again = np.concatenate([[False], ordered[1:] == ordered[:-1]])
    if (clash := np.flatnonzero(again & (check[order] != np.roll(check[order], 1)))).size:
        ids = files.read_table(files.join(work.folder, "items"), ["item_id"])["item_id"]
        one, other = ids.take(pa.array(order[clash[0] - 1 : clash[0] + 1])).to_pylist()
        raise UserError(f"The items {one!r} and {other!r} have the same hash: rename one of them.")
    first = np.zeros(len(hashes), dtype=bool)
    first[order[~again & (ordered != 0)]] = True
    exchange.deal(work.uri("index", "first.arrow"), pa.table({"first": first}))
    exchange.deal(work.uri("index", "known.arrow"), pa.table({"hash": ordered[~again & (ordered != 0)]}))
    return {"items": int(first.sum())}


def write_items(work: Work, read: Sequence[dict[str, Any]], number: int) -> dict[str, int]:
    """Writes the usable items of a part of the table, catalog/items, and what became of the others, rejects/ingest."""
    first = exchange.collect([work.uri("index", "first.arrow")])["first"].slice(
        sum(part["rows"] for part in read[:number])
    )
    found = {"usable": 0, "rejected": 0, "degraded": 0}
    where = (
        work.items[number].uri.rsplit("/", 1)[-1] if len({part.uri for part in work.items}) > 1 else "the items table"
    )
    for at in range(read[number]["blocks"]):
        name = _block(number, at)
        table = pl.DataFrame(files.read_table(work.uri("items", f"{name}.parquet")))
        bad = files.read_json(work.uri("bad", f"{name}.json"))
        kept, first = pl.Series(first.slice(0, table.height)), first.slice(table.height)
        usable, issues = items.split_items(table, bad, kept, where=where)
        if usable.height:
            files.write_part(work.run.uri("catalog", "items", f"part-{name}.parquet"), items.to_arrow(usable))
        if issues.height or (number == 0 and at == 0):  # an empty table says that nothing was rejected
            rejects = rejects_table(issues, stage="ingest")
            files.write_part(work.run.uri("rejects", "ingest", f"part-{name}.parquet"), rejects)
        rejected = issues.filter(severity=REJECTED).height
        for key, rows in (("usable", usable.height), ("rejected", rejected), ("degraded", issues.height - rejected)):
            found[key] += rows
    return found


def deal_events(work: Work, number: int) -> dict[str, Any]:
    """Brings a part of the log into canonical form, and deals its events and users to the partitions.

    Returns:
        The numbers of `kept` events, of dropped ones by reason with examples, and of files; and what there is to say.
    """
    assert work.form is not None  # noqa: S101 - there is a log
    known = exchange.collect([work.uri("index", "known.arrow")])["hash"].to_numpy()
    dropped, notes, kept, written = dict[str, events.Loss](), list[str](), 0, 0
    held, uri = list[tuple[pa.Table, pa.Table]](), work.log[number].uri
    for block in blocks.blocks(work.log[number], work.numbers, work.form.columns(work.config.label)):
        raw = work.config.with_labels(block.rows)
        late = work.form.late(raw, as_text=blocks.format_of(uri) == "csv")
        texts.check_late(uri, {work.config.label if name == "label" else name for name in late})
        raw = work.form.completed(raw)
        canonical = events.read_events(raw, work.log_uri, work.form)
        clean, lost = events.clean_events(canonical, known, raw, block.bad)
        dropped = events.together([dropped, lost])
        notes += block.notes[: events.EXAMPLES - len(notes)]
        kept += clean.height
        if clean.height:
            held.append(hashed(events.to_arrow(clean)))
        if sum(table.num_rows for table, _ in held) >= FLUSHED:
            written, held = _deal(work, number, written, held), []
    if held:
        written = _deal(work, number, written, held)
    return {"kept": kept, "dropped": dropped, "files": written, "notes": notes}


def write_log_part(work: Work, dealt: Sequence[int], number: int) -> dict[str, Any]:
    """Writes a partition of the log; returns its counts and columns, and of one that goes on what it has `lost`.

    Lost are events about items that have left the catalogue.

    Args:
        work: what every piece knows.
        dealt: numbers of files that the parts of the table have dealt.
        number: of the partition.
    """
    names = [_block(part, at) for part, count in enumerate(dealt) for at in range(count)]
    rows, users = (
        exchange.collect([work.uri(kind, f"{name}.arrow") for name in names], number) if names else None
        for kind in ("events", "users")
    )
    carried = number in work.carried
    if rows is not None and users is not None and not carried:
        return {"columns": rows.column_names, "lost": 0, **write_part(work.run, number, work.partitions, rows, users)}
    known = exchange.collect([work.uri("index", "known.arrow")])["hash"].to_numpy()
    before = read_events(RunDir(work.earlier), number)
    before = before if carried else before.slice(0, 0)  # nothing is left of it, and nothing was read at all
    there = rows_among(known, before["item"].to_numpy())[1]
    names_before = files.read_table(part_uri(RunDir(work.earlier), "users", number))
    kept = before if there.all() else before.filter(pa.array(there))
    written = extend_part(work.run, number, work.partitions, kept, names_before, rows, users)
    return {"columns": before.column_names, "lost": int((~there).sum()), **written}


def _deal(work: Work, number: int, written: int, held: Sequence[tuple[pa.Table, pa.Table]]) -> int:
    """Deals events and users of some blocks; returns the number of files that are written then."""
    for kind, parts in zip(("events", "users"), zip(*held, strict=True), strict=True):
        table = pa.concat_tables(parts)
        uri = work.uri(kind, f"{_block(number, written)}.arrow")
        exchange.deal(uri, table, table["user"].to_numpy() % work.partitions, work.partitions)
    return written + 1


def _block(number: int, at: int) -> str:
    return f"{number:05d}-{at:05d}"
