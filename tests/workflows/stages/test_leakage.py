"""What the features stage may know: nothing of an example's moment or later, and in training no held-out event.

Logs are small, with few moments, so that ties abound, and items arrive all the time, so that some are cold.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

from models.ranking.config import BAGS
from operators.columns import matrix_column
from operators.features.tokens import NULL_ID
from operators.log.encoding import encode
from operators.log.events import SPLITS
from operators.log.split import SplitLeaveLast, SplitTime, split_numbers
from storage import files
from storage.hashing import hash_ids, hash_order
from storage.run import RunDir
from tests.logs import read_examples, write_log
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.stages.features import stage as features

USERS, ITEMS, EVENTS, DAYS, HISTORY = 15, 20, 200, 25, 4
START = datetime(2026, 1, 1, tzinfo=UTC)
TIME = pl.Datetime("us", "UTC")
PAIR = ["user_id", "item_id", "timestamp"]
IDS = pa.array([f"item {n}" for n in range(ITEMS)])
ROWS = IDS.take(pa.array(hash_order(IDS.to_pylist())))  # of features/items

KINDS = {
    "time": SplitTime(),
    "leave_last": SplitLeaveLast(kind="leave_last"),
    "held_back": SplitLeaveLast(kind="leave_last", held_back=2),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_log = pytest.mark.parametrize("labels", [True, False])
some_seeds = pytest.mark.parametrize("seed", range(2))


class Written(NamedTuple):
    """What the stage left."""

    examples: dict[str, pl.DataFrame]  # by split
    items: pl.DataFrame
    users: pl.DataFrame


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    """A run up to quantize, but for its log."""
    run = RunDir(str(tmp_path_factory.mktemp("leakage")))
    text = pa.array([f"thing {n}" for n in range(ITEMS)])
    interests = pa.nulls(ITEMS, pa.list_(pa.string()))
    attributes = pa.nulls(ITEMS, pa.map_(pa.string(), pa.string()))
    codes = np.stack([np.arange(ITEMS) % 3, np.arange(ITEMS), np.full(ITEMS, -1)], axis=1)
    run.write_table(pa.table({"item_id": IDS, "attributes": attributes}), "catalog", "items")
    texts = {"title": text, "description": text, "caption": text, "interests": interests}
    run.write_table(pa.table({"item_id": IDS, "attributes": attributes, **texts}), "items")
    run.write_table(pa.table({"item_id": IDS, "embedding": matrix_column(np.zeros((ITEMS, 2)))}), "embeddings")
    run.write_table(pa.table({"item_id": IDS, "codes": matrix_column(codes)}), "sids")
    return Context(run, run.root, 0, "f", log=lambda line: None, progress=lambda done, total: None)


def draw_log(random: np.random.Generator, *, labels: bool) -> pl.DataFrame:
    day = random.integers(0, DAYS, EVENTS)
    return pl.DataFrame(
        {
            "user_id": [f"user {n}" for n in random.integers(0, USERS, EVENTS)],
            "item_id": [f"item {n}" for n in random.integers(0, 4 + day * (ITEMS - 3) // DAYS)],
            "timestamp": pl.Series([START + timedelta(days=int(n)) for n in day], dtype=TIME),
            "hour": pl.Series(random.normal(size=EVENTS), dtype=pl.Float32),
            **({"label": pl.Series(random.integers(0, 2, EVENTS), dtype=pl.Float32)} if labels else {}),
        }
    )


def drawn_anew(rows: pl.DataFrame, random: np.random.Generator, *, later_than: pl.Expr) -> pl.DataFrame:
    """The same users, who did other things at other times, liked others, in another context."""
    number = len(rows)
    drawn = draw_log(random, labels=True).sample(number, with_replacement=True, seed=int(random.integers(1 << 30)))
    delay = pl.Series([timedelta(seconds=float(n)) for n in random.uniform(1, 1e6, number)], dtype=pl.Duration("us"))
    columns = [name for name in rows.columns if name not in ("user_id", "timestamp")]
    return rows.with_columns(*drawn.select(columns), timestamp=later_than + delay)


def write(context: Context, log: pl.DataFrame, kind: str) -> Written:
    run = context.run
    files.remove(run.uri("checkpoints"))  # which the runner removes
    write_log(run, log.to_arrow())
    stage("features").run(
        features.Config(history=HISTORY, long_history=HISTORY, negatives=2), replace(context, split=KINDS[kind])
    )
    state = (pl.from_arrow(run.read_table("features", name)) for name in ("items", "users"))
    return Written({name: read_examples(run, name) for name in SPLITS}, *state)


def with_splits(log: pl.DataFrame, kind: str) -> pl.DataFrame:
    """The log in the stage's order, each event with its `split` (-1: held back) and its `label` (1 without labels)."""
    encoded = encode(log.to_arrow(), pa.chunked_array([ROWS]))
    events = encoded.events
    return pl.DataFrame(
        {
            "user_id": pl.Series(pl.from_arrow(encoded.users)).gather(events.user),
            "item_id": pl.Series(pl.from_arrow(ROWS)).gather(events.item),
            "timestamp": pl.Series(events.time).cast(TIME),
            "hour": pl.from_arrow(encoded.context)["context_hour"],
            "label": events.label,
            "split": split_numbers(KINDS[kind], events),
        }
    )


@every_kind
@every_log
@some_seeds
def test_the_future_changes_no_feature(context: Context, kind: str, labels: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    log = draw_log(random, labels=labels)
    cut = START + timedelta(days=int(random.integers(3, DAYS - 1)))
    past, future = log.filter(pl.col("timestamp") <= cut), log.filter(pl.col("timestamp") > cut)
    other = pl.concat([past, drawn_anew(future, random, later_than=pl.lit(cut, TIME))])
    before, after = (write(context, table, kind).examples for table in (log, other))
    for split in SPLITS:
        known, found = (tables[split].filter(pl.col("timestamp") <= cut) for tables in (before, after))
        assert_frame_equal(*(table if labels else table.filter(pl.col("label") == 1) for table in (found, known)))
        # Which negatives are drawn goes by chance; what is known of them goes by the past.
        columns = [name for name in found.columns if name != "context_hour"]  # which is the positive's
        known, found = (table.filter(pl.col("label") == 0).select(columns).unique(PAIR) for table in (known, found))
        found, known = (one.join(two, on=PAIR, how="semi").sort(PAIR) for one, two in ((found, known), (known, found)))
        assert_frame_equal(found, known)


@every_kind
@every_log
@some_seeds
def test_an_example_knows_what_came_before_it_alone(context: Context, kind: str, labels: bool, seed: int) -> None:
    log = draw_log(np.random.default_rng(seed), labels=labels)
    examples = write(context, log, kind).examples
    events = list(with_splits(log, kind).select(*PAIR, "label", "split").iter_rows())
    ids = ROWS.to_pylist()
    for number, split in enumerate(SPLITS):
        for example in examples[split].iter_rows(named=True):
            known = [event for event in events if event[2] < example["timestamp"] and abs(event[4]) <= number]
            by_user = [event for event in known if event[0] == example["user_id"]]
            of_item = [event for event in known if event[1] == example["item_id"]]
            history = [item for _, item, _, label, _ in by_user if label][-HISTORY:]
            assert [ids[row] for row in example["history"]] == history
            number_of = int(example["item_id"].split()[1])
            liked = [int(item.split()[1]) for _, item, _, label, _ in by_user if label]
            same = [(item == number_of, place) for place, item in enumerate(liked) if item % 3 == number_of % 3]
            assert example["sid_likes_1"] == pytest.approx(np.log1p(len(same)), abs=1e-6)
            assert example["sid_likes_2"] == pytest.approx(np.log1p(liked.count(number_of)), abs=1e-6)
            nearest = [f"item {liked[place]}" for _, place in sorted(same)[-HISTORY:]]
            assert [ids[row] for row in example["long_history"]] == nearest
            assert example["user_events"] == pytest.approx(np.log1p(len(by_user)), abs=1e-6)
            assert example["item_events"] == pytest.approx(np.log1p(len(of_item)), abs=1e-6)
            assert example["item_share"] == pytest.approx(np.log((len(of_item) + 1) / (len(known) + 1)), abs=1e-6)


@every_kind
@every_log
@some_seeds
def test_training_is_made_from_its_own_split_alone(context: Context, kind: str, labels: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    log = draw_log(random, labels=labels)
    events = with_splits(log, kind)
    train, held_out = (events.filter(part).select(log.columns) for part in (pl.col("split") == 0, pl.col("split") != 0))
    other = drawn_anew(held_out, random, later_than=pl.col("timestamp"))
    if kind == "time":  # whose cuts are quantiles of the times
        users = pl.Series([f"user {n}" for n in random.integers(0, 2 * USERS, len(other))], dtype=pl.String)
        other = other.with_columns(held_out["timestamp"], user_id=users)
    before, after = (write(context, table, kind) for table in (log, pl.concat([train, other])))
    assert_frame_equal(after.examples["train"], before.examples["train"])
    assert_frame_equal(*(written.items.select("item_id", "item", *BAGS) for written in (after, before)))
    for written in (before, after):
        for table, name in ((written.items, "item"), (written.users, "user")):
            seen = table[f"{name}_id"].is_in(train[f"{name}_id"].unique().to_list()).to_numpy()
            expected = np.where(seen, hash_ids(table[f"{name}_id"]), NULL_ID)
            np.testing.assert_array_equal(table[name], expected)
        users = dict(written.users.select("user_id", "user").iter_rows())
        for table in written.examples.values():
            assert table["user"].to_list() == [users[user_id] for user_id in table["user_id"]]


@every_kind
def test_items_come_out_the_same_block_by_block(context: Context, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log = draw_log(np.random.default_rng(5), labels=True)
    whole = write(context, log, kind).items
    monkeypatch.setattr(files, "PART_ROWS", 7)
    assert_frame_equal(write(context, log, kind).items, whole)
