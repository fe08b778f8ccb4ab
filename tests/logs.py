"""The log and the examples of a run with ids in place of hashes, as tests write and compare them."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import pyarrow as pa

from operators.log.partitions import CONTEXT, About, read_about, read_events, write_about
from operators.log.writing import hashed, write_part
from storage import files
from storage.hashing import hash_ids
from storage.run import RunDir


def _users(run: RunDir) -> pl.DataFrame:
    return pl.from_arrow(run.read_table("log", "users"))  # type: ignore[return-value]


def read_log_table(run: RunDir, *items: str) -> pa.Table:
    """Returns the log with user_id and item_id first, by time, then user and item in the order of their hashes.

    Args:
        run: whose log it is.
        items: ids that its events may be about; those of the canonical catalogue, or else of the embeddings.
    """
    if not items:
        parts = ("catalog", "items") if files.exists(run.uri("catalog", "items")) else ("embeddings",)
        items = tuple(run.read_table(*parts, columns=["item_id"])["item_id"].to_pylist())
    names = pl.DataFrame({"item": hash_ids(items), "item_id": list(items)})
    about = read_about(run)
    assert about is not None
    events = pl.concat([pl.DataFrame(read_events(run, number)) for number in range(about.partitions)])
    events = events.sort("timestamp", "user", "item")
    events = events.join(_users(run), on="user", how="left", maintain_order="left")
    events = events.join(names, on="item", how="left", maintain_order="left")
    rest = [name for name in events.columns if name not in ("user", "item", "user_id", "item_id")]
    events = events.with_columns(pl.col("item_id").fill_null("?"))
    found = events.select("user_id", "item_id", *(pl.col(name).alias(name.removeprefix(CONTEXT)) for name in rest))
    table = found.to_arrow(compat_level=pl.CompatLevel.oldest())
    strings = {name: pa.string() for name in ("user_id", "item_id")}
    return table.cast(pa.schema([(field.name, strings.get(field.name, field.type)) for field in table.schema]))


def read_examples(run: RunDir, name: str) -> pl.DataFrame:
    """Returns features/train, valid or test with user_id and item_id first, by time where there are several parts."""
    table = pl.DataFrame(run.read_table("features", name))
    items = pl.DataFrame(run.read_table("features", "items", columns=["item_id"]))
    users = pl.DataFrame(run.read_table("features", "users", columns=["user_hash", "user_id"]))
    found = table.join(users, on="user_hash", how="left", maintain_order="left")
    return found.select("user_id", items["item_id"].gather(table["row"]), pl.exclude("user_id"))


def write_log(run: RunDir, interactions: pa.Table, *, partitions: int = 1) -> About:
    """Writes a log that fits into memory; see `hashed` for its columns."""
    files.remove(run.uri("log"))
    events, users = hashed(interactions)
    parts = [
        write_part(run, number, partitions, *_owned((events, users), number, partitions))
        for number in range(partitions)
    ]
    return write_about(run, parts, events.column_names)


def _owned(tables: Sequence[pa.Table], number: int, partitions: int) -> list[pa.Table]:
    """Returns the rows of users of one partition."""
    return [table.filter(pa.array(table["user"].to_numpy() % partitions == number)) for table in tables]
