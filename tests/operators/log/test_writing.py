"""A partition that goes on from an earlier one is the one that all events would have made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from operators.log.partitions import read_events
from operators.log.writing import extend_part, hashed, write_part
from storage.errors import UserError
from storage.hashing import hash_ids
from storage.run import RunDir

EVENTS = 120


def drawn(seed: int) -> pa.Table:
    """Few users, items and moments, so that ties and duplicates abound."""
    random = np.random.default_rng(seed)
    return pa.table(
        {
            "user_id": [f"user {number}" for number in random.integers(0, 9, EVENTS)],
            "item_id": [f"item {number}" for number in random.integers(0, 4, EVENTS)],
            "timestamp": pa.array(random.integers(0, 30, EVENTS), pa.timestamp("us", "UTC")),
            "label": random.integers(0, 2, EVENTS).astype(np.float32),
            "hour": random.integers(0, 2, EVENTS).astype(np.float32),
        }
    )


def files_of(run: RunDir) -> tuple[pa.Table, pa.Table]:
    return read_events(run, 0), run.read_table("log", "users")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 99), first=st.integers(0, EVENTS), by_time=st.booleans())
def test_what_comes_later_makes_the_partition_that_all_would_have_made(
    tmp_path: Path, seed: int, first: int, by_time: bool
) -> None:
    table = drawn(seed)
    table = table.sort_by("timestamp") if by_time else table
    whole, old, new = (RunDir(str(tmp_path / name)) for name in ("whole", "old", "new"))
    wanted = write_part(whole, 0, 1, *hashed(table))
    before = write_part(old, 0, 1, *hashed(table.slice(0, first)))
    later = hashed(table.slice(first)) if first < EVENTS else (None, None)
    found = extend_part(new, 0, 1, *files_of(old), *later)
    assert [one.equals(other) for one, other in zip(files_of(new), files_of(whole), strict=True)] == [True, True]
    assert {name: found[name] for name in wanted if name != "duplicates"} == {
        name: count for name, count in wanted.items() if name != "duplicates"
    }
    assert found["before"] == before["events"]
    assert before["duplicates"] + found["duplicates"] == wanted["duplicates"]


def test_users_who_lost_their_events_leave_and_hashes_stay_apart(tmp_path: Path) -> None:
    old, new = RunDir(str(tmp_path / "old")), RunDir(str(tmp_path / "new"))
    table = drawn(0)
    write_part(old, 0, 1, *hashed(table))
    events, users = files_of(old)
    gone = hash_ids(["user 1"])[0]
    extend_part(new, 0, 1, events.filter(pa.compute.not_equal(events["user"], gone)), users, None, None)
    assert gone not in new.read_table("log", "users")["user"].to_pylist()
    again, names = hashed(table.slice(0, 1))
    clash = names.set_column(1, "user_check", pa.array([7]))
    with pytest.raises(UserError, match="have the same hash"):
        extend_part(new, 0, 1, events, users, again, clash.set_column(2, "user_id", pa.array(["another"])))
    with pytest.raises(RuntimeError, match="another partition"):
        extend_part(new, 0, 1 << 40, events, users, again, names)
