"""Item vectors of a SASRec: of which items, and that the test part of the log is not in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from operators.columns import matrix_of
from operators.log.partitions import item_ids
from storage import files
from storage.run import RunDir
from tests.logs import write_log
from tests.workflows.stages.generate.test_build import EVENTS, ITEMS, SPLIT, USERS, write_run
from workflows.engine.stage import Context
from workflows.stages.quantize.settings import Collaborative
from workflows.stages.quantize.trained_vectors import write_trained_vectors

FIT = {"steps": 30, "batch_size": 16, "validate_every": 15, "precision": "fp32"}


def written(root: Path, *, last: int) -> tuple[RunDir, pa.Table]:
    """A run whose users go by a chain of items, but that `last` is added to what the last event is about."""
    run = write_run(root)
    files.remove(run.uri("log"))
    user, step = np.divmod(np.arange(USERS * EVENTS), EVENTS)
    log = {
        "user_id": [f"user {n}" for n in user],
        "item_id": [f"item {n}" for n in (7 * user + step + last * (step == EVENTS - 1)) % ITEMS],
        "timestamp": pa.array(step * 1_000_000 + user, pa.timestamp("us", tz="UTC")),
    }
    write_log(run, pa.table(log))
    context = Context(run, run.root, 0, "f", log=str, progress=lambda done, total: None, split=SPLIT)
    uri = run.uri("checkpoints", "quantize", "signals")
    write_trained_vectors(Collaborative(source="sasrec", width=8, fit=FIT), context, uri)
    return run, files.read_table(uri)


def test_items_that_training_chooses_have_a_vector_of_training_alone(tmp_path: Path) -> None:
    run, found = written(tmp_path / "one", last=0)
    assert found["item_id"].to_pylist() == item_ids(run).to_pylist()
    vectors = matrix_of(found["vector"])
    assert vectors.shape == (ITEMS, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    _, other = written(tmp_path / "two", last=5)
    assert other["item_id"].equals(found["item_id"])
    np.testing.assert_allclose(matrix_of(other["vector"]), vectors, rtol=1e-5, atol=1e-6)


def test_two_heads_share_the_width() -> None:
    with pytest.raises(ValueError, match="write width: 66"):
        Collaborative(source="sasrec", width=65)
    assert Collaborative(width=65).width == 65
