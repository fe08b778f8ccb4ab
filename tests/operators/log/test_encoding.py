from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from operators.columns import matrix_column
from operators.log import encoding
from operators.log.encoding import encode, read_log
from storage.errors import UserError
from storage.hashing import hash_order
from storage.run import RunDir

IDS = ["a", "b", "c"]


def interactions(items: list[str]) -> pa.Table:
    time = pa.array(range(len(items)), pa.timestamp("us", "UTC"))
    return pa.table({"user_id": ["u"] * len(items), "item_id": items, "timestamp": time})


@pytest.fixture(params=["local", "memory"])
def run(request, tmp_path) -> RunDir:
    run = RunDir(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")
    run.write_table(pa.table({"item_id": IDS, "embedding": matrix_column(np.zeros((3, 2)))}), "embeddings")
    run.write_table(interactions(["c", "a", "x"]), "catalog", "interactions")
    return run


def test_a_runs_log_has_the_items_with_an_embedding_in_hash_order(run: RunDir) -> None:
    log = read_log(run)
    assert log.items.to_pylist() == [IDS[row] for row in hash_order(IDS)]
    assert log.items.take(pa.array(log.events.item)).to_pylist() == ["c", "a"]  # x has no embedding
    wanted = encode(run.read_table("catalog", "interactions"), log.items)
    assert [values.tolist() for values in vars(log.events).values()] == [
        values.tolist() for values in vars(wanted.events).values()
    ]


def test_a_log_is_encoded_once_until_a_table_changes(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(encoding, "encode", lambda *tables: calls.append(tables) or encode(*tables))
    assert read_log(run) is read_log(run)
    assert len(calls) == 1
    run.write_table(interactions(["c", "a", "b", "b"]), "catalog", "interactions")
    assert len(read_log(run).events) == 4
    run.write_table(run.read_table("embeddings").slice(1), "embeddings")
    assert len(read_log(run).events) == 3
    assert len(calls) == 3


def test_a_run_without_interactions_is_told(tmp_path) -> None:
    with pytest.raises(UserError, match="has no interactions"):
        read_log(RunDir(str(tmp_path)))
