"""What a run's recommenders learn from and are asked, as it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pyarrow as pa
import pytest

from operators.log.partitions import item_ids
from operators.log.split import SplitLeaveLast
from storage.errors import UserError
from storage.hashing import hash_order
from tests.logs import read_log_table, write_log
from tests.workflows.stages.generate.test_build import EVENTS, ITEMS, USERS, read, row_of, rows, write_run
from workflows.stages.generate.data import read_sids


@pytest.mark.parametrize("held_back", [1, 2])
def test_sequences_and_queries_are_in_rows_of_the_hash_order(tmp_path: Path, held_back: Literal[1, 2]) -> None:
    run = write_run(tmp_path)
    data = read(run, SplitLeaveLast(kind="leave_last", held_back=held_back))
    ids = run.read_table("embeddings")["item_id"].to_pylist()
    assert data.item_ids.to_pylist() == [ids[at] for at in hash_order(ids)]
    row = row_of(data)
    chains = [[row[f"item {(7 * user + step) % ITEMS}"] for step in range(EVENTS)] for user in range(USERS)]
    assert sorted(rows(data.sequences)) == sorted(chain[: -1 - held_back] for chain in chains)
    for asked, end in ((data.valid, -2), (data.test, -1)):
        found = [
            [*history, target] for history, target in zip(rows(asked.histories), asked.target.tolist(), strict=True)
        ]
        assert sorted(found) == sorted(chain[: EVENTS + end + 1] for chain in chains)


def test_a_log_without_a_sequence_is_explained(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    log = read_log_table(run)
    last = pa.compute.greater_equal(pa.compute.second(log["timestamp"]), EVENTS - 3)
    write_log(run, log.filter(last))
    with pytest.raises(UserError, match="give a longer one"):
        read(run)


def test_an_item_without_a_semantic_id_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    run.write_table(run.read_table("sids").slice(3), "sids")
    with pytest.raises(UserError, match=r"3 items are missing in sids\.$"):
        read_sids(run, item_ids(run))
