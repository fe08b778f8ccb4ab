from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.ranker import FIELDS
from operators.features import Examples, ItemFeatures, gather, lists, ranker_inputs
from storage.errors import UserError

LISTS = {
    "caption": [[11, 12], [0], [13]],
    "text": [[21], [22, 23], [0]],
    "sid": [[31, 32], [31, 33], [34, 35]],
}
ITEMS = pa.table(
    {"item_id": ["a", "b", "c"], "item": [7, 0, 9], **{k: pa.array(v, pa.list_(pa.int64())) for k, v in LISTS.items()}}
)
VECTORS = np.arange(6, dtype=np.float32)
EMBEDDINGS = pa.table({"item_id": ["c", "a", "b"], "embedding": pa.FixedSizeListArray.from_arrays(VECTORS, 2)})


def inputs(histories: list[list[int]], rows: list[int], **extra: object):
    values, offsets = lists(pa.array(histories, pa.list_(pa.int32())))
    return ranker_inputs(
        ItemFeatures(ITEMS, EMBEDDINGS),
        user=torch.arange(1, len(rows) + 1),
        history=(values, offsets),
        rows=torch.tensor(rows),
        dense=torch.zeros(len(rows), 1),
        **extra,
    )


def test_every_field_of_every_row() -> None:
    histories, rows = [[0, 2], [], [1], [], [2, 2, 0]], [1, 0, 2, 2, 0]
    batch = inputs(histories, rows)
    sparse = {key: [t.tolist() for t in batch.sparse[key].to_dense()] for key in batch.sparse.keys()}  # noqa: SIM118
    ids = ITEMS["item"].to_pylist()
    assert list(sparse) == list(FIELDS)
    assert sparse["user"] == [[1], [2], [3], [4], [5]]
    assert sparse["item"] == [[ids[row]] for row in rows]
    assert sparse["history_item"] == [[ids[row] for row in past] or [0] for past in histories]
    for bag, values in LISTS.items():
        assert sparse[bag] == [values[row] for row in rows]
        assert sparse[f"history_{bag}"] == [[t for row in past for t in values[row]] or [0] for past in histories]


def test_embeddings_follow_their_item_and_an_empty_history_has_none() -> None:
    batch = inputs([[0, 2], []], [1, 0])
    assert batch.content.tolist() == [[4, 5], [2, 3]]
    assert batch.history_content[0].tolist() == [1, 2]  # mean of [2, 3] and [0, 1]
    assert batch.history_content[1].isnan().all()


def test_ids_masked_out_are_unknown() -> None:
    keep = torch.tensor([[True, False], [False, True]])
    sparse = inputs([[0], [0]], [0, 2], keep=keep).sparse
    assert sparse["user"].values().tolist() == [1, 0]
    assert sparse["item"].values().tolist() == [0, 9]
    assert sparse["history_item"].values().tolist() == [7, 7]


def test_batches_of_examples_equal_one_call() -> None:
    table = pa.table(
        {
            "user": [1, 2, 3],
            "row": pa.array([0, 1, 2], pa.int32()),
            "history": pa.array([[1], [], [0, 1]], pa.list_(pa.int32())),
            "age": pa.array([0.5, None, 2], pa.float32()),
            "label": pa.array([1, 0, 1], pa.float32()),
        }
    )
    items, examples = ItemFeatures(ITEMS, EMBEDDINGS), Examples(table, ["age"])
    batch = examples.batch(items, torch.tensor([2, 0]))
    whole = inputs([[0, 1], [1]], [2, 0])
    assert batch.sparse["history_caption"].values().tolist() == whole.sparse["history_caption"].values().tolist()
    assert batch.sparse["user"].values().tolist() == [3, 1]
    assert batch.dense.tolist() == [[2], [0.5]]
    assert examples.dense[1].isnan().all()


def test_lists_of_a_slice_and_their_gather() -> None:
    column = pa.array([[9], [1, 2], [], [3]], pa.list_(pa.int32())).slice(1)
    values, offsets = gather(lists(column), torch.tensor([2, 1, 0, 0]))
    assert (values.tolist(), offsets.tolist()) == ([3, 1, 2, 1, 2], [0, 1, 1, 3, 5])


def test_an_item_without_an_embedding_is_the_users_to_mend() -> None:
    with pytest.raises(UserError, match="--from project"):
        ItemFeatures(ITEMS, EMBEDDINGS.slice(0, 2))
