from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from operators.columns import matrix_column
from operators.log import writing
from operators.log.partitions import kept_cuts, moments, open_log, part_uri, read_about, read_user_ids
from operators.log.split import SplitLeaveLast, SplitTime
from operators.log.writing import hashed, write_part
from storage import files
from storage.errors import UserError
from storage.hashing import hash_ids
from storage.run import RunDir
from tests.logs import read_log_table, write_log

ITEMS = [f"item {n}" for n in range(9)]


def interactions(seed: int = 0, *, events: int = 300, users: int = 20) -> pa.Table:
    random = np.random.default_rng(seed)
    return pa.table(
        {
            "user_id": [f"user {n}" for n in random.integers(0, users, events)],
            "item_id": [ITEMS[n] for n in random.integers(0, len(ITEMS), events)],
            "timestamp": pa.array(random.integers(0, 10**6, events), pa.timestamp("us", "UTC")),
            "label": random.integers(0, 2, events).astype(np.float32),
            "user": random.normal(size=events).astype(np.float32),  # context may have any name
        }
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(str(tmp_path))
    table = {"item_id": ITEMS[1:], "embedding": matrix_column(np.zeros((len(ITEMS) - 1, 2), np.float32))}
    run.write_table(pa.table(table), "embeddings")
    return run


@pytest.mark.parametrize("number", [1, 2, 7])
def test_every_event_is_in_one_partition_in_order_and_comes_back(run: RunDir, number: int) -> None:
    given = interactions()
    about = write_log(run, given, partitions=number)
    assert (about.partitions, about.events, about.users) == (number, 300, 20)
    assert about.positives == sum(given["label"].to_pylist())
    others = given.filter(pc.less(given["label"], 0.5))["timestamp"].cast(pa.int64())
    assert about.unliked == pc.min(others).as_py()
    keys = [(name, "ascending") for name in ("timestamp", "user_id", "item_id", "label")]
    assert read_log_table(run, *ITEMS).sort_by(keys).equals(given.sort_by(keys))
    log, rows = open_log(run), 0
    for part in map(log.part, range(number)):
        events = part.events
        assert (part.users % number == part.users[:1] % number).all()
        order = np.lexsort((events.label, events.item, events.time, events.user))
        np.testing.assert_array_equal(order, np.arange(len(events)))
        rows += len(events)
    assert rows == sum(item != ITEMS[0] for item in given["item_id"].to_pylist())  # which has no embedding


def test_splits_cut_all_numbers_of_partitions_alike(run: RunDir) -> None:
    found = []
    for number in (1, 2, 7):
        write_log(run, interactions(), partitions=number)
        found.append(open_log(run).cuts(SplitTime(valid=0.2, test=0.3)))
        assert open_log(run).cuts(SplitLeaveLast(kind="leave_last")) == ()
    assert found[0] == found[1] == found[2]
    known = interactions().filter(pc.not_equal(interactions()["item_id"], ITEMS[0]))  # which has no embedding
    time = known["timestamp"].cast(pa.int64()).to_numpy()
    assert (time < found[0][0]).mean() == pytest.approx(0.5, abs=0.01)
    assert (time < found[0][1]).mean() == pytest.approx(0.7, abs=0.01)


def test_cuts_of_the_whole_log_are_those_of_ingest_where_all_events_are_usable(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, given = SplitTime(valid=0.2, test=0.3), interactions()
    usable = given.filter(pc.not_equal(given["item_id"], ITEMS[0]))
    about = write_log(run, usable, partitions=2)
    kept = kept_cuts(run.uri("log"), split, partial(moments, run, about), about.events)
    with monkeypatch.context() as patch:
        patch.setattr(SplitTime, "cuts", lambda *_: pytest.fail("cut again"))
        assert open_log(run).cuts(split) == kept
    whole = write_log(run, given, partitions=2)
    all_of_it = kept_cuts(run.uri("log"), split, partial(moments, run, whole), whole.events)
    assert open_log(run).cuts(split) == kept != all_of_it


def test_passes_over_the_log_read_items_only_to_leave_some_out(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    given, read = interactions(), list[list[str]]()
    read_table = files.read_table
    for usable in (True, False):
        write_log(run, given.filter(pc.not_equal(given["item_id"], ITEMS[0])) if usable else given)
        log = open_log(run)
        with monkeypatch.context() as patch:
            patch.setattr(
                files, "read_table", lambda uri, columns=None: read.append(columns) or read_table(uri, columns)
            )
            assert sum(map(len, log.moments())) == log.about.events
    assert read == [["user", "timestamp"], ["user", "timestamp", "item"]]


def test_what_is_known_of_the_log_with_other_items_is_removed(run: RunDir) -> None:
    write_log(run, interactions())
    before = open_log(run)
    before.cuts(SplitTime(valid=0.2, test=0.3))
    run.write_table(run.read_table("embeddings").slice(1), "embeddings")
    after = open_log(run)
    assert after.about.events < before.about.events
    assert files.exists(after.folder)
    assert not files.exists(before.folder)


def test_an_event_that_stands_twice_is_kept_once(run: RunDir) -> None:
    given = interactions(events=40)
    events, users = hashed(pa.concat_tables([given, given.slice(5, 10)]))
    counts = write_part(run, 0, 1, events, users)
    assert (counts["events"], counts["duplicates"]) == (40, 10)


def test_an_event_in_the_wrong_partition_is_not_passed_over(run: RunDir) -> None:
    events, users = hashed(interactions())
    with pytest.raises(RuntimeError, match="another partition came to partition 0"):
        write_part(run, 0, 2, events, users)
    write_log(run, interactions(), partitions=2)
    files.write_part(part_uri(run, "events", 0), files.read_table(part_uri(run, "events", 1)))
    with pytest.raises(RuntimeError, match=r"partition 0 .* users of another one"):
        open_log(run).part(0)


def test_two_users_of_one_hash_are_told_apart(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "hash_ids", lambda ids: hash_ids(ids) // 10**18 + 1)
    with pytest.raises(UserError, match=r"^The users 'user \d+' and 'user \d+' have the same hash: rename one of them"):
        write_log(run, interactions())


def test_users_are_named_by_their_hashes(run: RunDir) -> None:
    write_log(run, interactions(), partitions=3)
    wanted = ["user 3", "user 1", "user 3", "user 17"]
    assert read_user_ids(run, hash_ids(wanted)).to_pylist() == wanted


def test_labels_that_say_nothing_are_none(run: RunDir) -> None:
    given = interactions()
    ones = given.set_column(3, "label", pa.array(np.ones(300, np.float32)))
    assert not write_log(run, ones).labelled
    assert not write_log(run, given.drop_columns("label")).labelled
    assert write_log(run, given).labelled
    write_log(run, given.set_column(3, "label", pa.array(np.zeros(300, np.float32))))
    with pytest.raises(UserError, match="Every label of the events about usable items is 0"):
        open_log(run)


def test_events_about_items_without_an_embedding_say_nothing_of_the_log(run: RunDir) -> None:
    given = interactions()
    lost = given.set_column(1, "item_id", pa.array(["lost"] * 300))
    ones, zeros = (pa.array(np.full(300, label, np.float32)) for label in (1, 0))
    split = SplitTime(valid=0.2, test=0.3)
    write_log(run, given, partitions=2)
    cuts = open_log(run).cuts(split)
    later = pa.array(np.arange(300) + 10**6, pa.timestamp("us", "UTC"))
    write_log(run, pa.concat_tables([given, lost.set_column(2, "timestamp", later)]), partitions=2)
    assert open_log(run).cuts(split) == cuts
    write_log(run, pa.concat_tables([given.set_column(3, "label", ones), lost.set_column(3, "label", zeros)]))
    assert not open_log(run).about.labelled
    write_log(run, pa.concat_tables([given.set_column(3, "label", ones).slice(0, 1), lost]))
    with pytest.raises(UserError, match="No user has three events"):
        open_log(run).cuts(SplitLeaveLast(kind="leave_last"))
    write_log(run, pa.concat_tables([given.set_column(3, "label", zeros), lost.set_column(3, "label", ones)]))
    with pytest.raises(UserError, match="Every label of the events about usable items is 0"):
        open_log(run)
    write_log(run, lost)
    with pytest.raises(UserError, match="Every event is about an item that interpret rejected"):
        open_log(run)


def test_a_run_without_a_log_is_told(tmp_path: Path) -> None:
    empty = RunDir(str(tmp_path))
    assert read_about(empty) is None
    with pytest.raises(UserError, match="has no interactions"):
        open_log(empty)
