from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.ranking.config import RankerConfig, Table
from models.ranking.ranker import Kept, Ranker
from models.ranking.settings import RankerSettings
from models.semantic_ids.quantizer import RQKMEANS, RQVAE, Architecture, Quantizer
from operators.columns import jagged_of, matrix_column
from operators.features.ranker_inputs import Examples, example_parts, laid_out, read_decoded, read_items
from operators.features.tokens import table_rows
from storage import files
from storage.errors import ArtifactError, UserError
from storage.run import RunDir

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
TABLES = {
    "user": Table(rows=1000, features=("user",)),
    **{name: Table(rows=1000, features=(name, f"history_{name}")) for name in ("item", *LISTS)},
}
CONFIG = RankerConfig(tables=TABLES, dense=("age",), content_dim=2)
HISTORIES, ROWS = [[0, 2], [], [1], [], [2, 2, 0]], [1, 0, 2, 2, 0]


def rows_of(hashes: list[int], table: Table, function: int = 0) -> list[int]:
    return table_rows(np.array(hashes), rows=table.rows, function=function).tolist()


def inputs(histories: list[list[int]], rows: list[int], config: RankerConfig = CONFIG, **extra: object):
    return laid_out(ITEMS, EMBEDDINGS, config).inputs(
        user=torch.arange(1, len(rows) + 1),
        history=jagged_of(pa.array(histories, pa.list_(pa.int32()))),
        rows=torch.tensor(rows),
        dense=torch.zeros(len(rows), 1),
        **extra,
    )


def found(jagged) -> dict[str, list[list[int]]]:
    return {key: [t.tolist() for t in jagged[key].to_dense()] for key in jagged.keys()}  # noqa: SIM118


def test_every_field_of_every_row() -> None:
    batch = inputs(HISTORIES, ROWS)
    sparse = found(batch.sparse)
    ids = ITEMS["item"].to_pylist()
    assert batch.weighted is None
    assert set(sparse) == {feature for table in TABLES.values() for feature in table.features}
    assert sparse["user"] == [rows_of([user], TABLES["user"]) for user in range(1, 6)]
    assert sparse["item"] == [rows_of([ids[row]], TABLES["item"]) for row in ROWS]
    assert sparse["history_item"] == [
        rows_of([ids[row] for row in past], TABLES["item"]) if past else [0] for past in HISTORIES
    ]
    for bag, values in LISTS.items():
        assert sparse[bag] == [rows_of(values[row], TABLES[bag]) for row in ROWS]
        assert sparse[f"history_{bag}"] == [
            rows_of([t for row in past for t in values[row]], TABLES[bag]) if past else [0] for past in HISTORIES
        ]


def test_a_ranker_gets_what_its_tables_name() -> None:
    tables = {"caption": TABLES["caption"], "item": Table(rows=50, features=("item",))}
    batch = inputs(HISTORIES, ROWS, RankerConfig(tables=tables, dense=("age",)))
    assert set(found(batch.sparse)) == {"caption", "history_caption", "item"}
    assert batch.content is None
    assert batch.history_content is None


def test_a_hash_embedding_takes_several_rows_of_every_token_and_knows_their_weights() -> None:
    table = Table(rows=40, features=("caption", "history_caption"), hashes=2, importance=30)
    batch = inputs(HISTORIES, ROWS, CONFIG.model_copy(update={"tables": {**TABLES, "caption": table}}))
    assert set(found(batch.weighted)) == {"caption", "history_caption"}
    assert "caption" not in found(batch.sparse)
    for row, values in zip(ROWS, found(batch.weighted)["caption"], strict=True):
        tokens = LISTS["caption"][row]
        first, second = (rows_of(tokens, table, function) for function in (0, 1))
        assert values == [row for pair in zip(first, second, strict=True) for row in pair]
    importance = table_rows(np.array(LISTS["caption"][ROWS[0]]), rows=30, function=2)
    expected = [place * 2 + number for place in importance.tolist() for number in (0, 1)]
    weights = batch.weighted["caption"].weights()
    assert weights[: len(expected)].tolist() == expected
    past = batch.weighted["history_caption"]
    assert past.lengths().tolist() == [6, 2, 2, 2, 8]
    assert past.to_dense()[1].tolist() == [0, 0]  # an empty history


def test_positions_of_a_history_are_its_newest_items_first() -> None:
    batch = inputs(HISTORIES, ROWS, CONFIG.model_copy(update={"history": 2}))
    sparse = found(batch.sparse)
    assert batch.history_length.tolist() == [2, 0, 1, 0, 2]
    for place in range(2):
        past = [history[::-1][place] if place < len(history) else None for history in HISTORIES]
        for bag, values in LISTS.items():
            assert sparse[f"history_{bag}.{place}"] == [
                [0] if row is None else rows_of(values[row], TABLES[bag]) for row in past
            ]
    assert "history_caption" not in sparse


@pytest.mark.parametrize("history", [0, 2])
def test_a_second_history_is_read_as_the_first_one(history: int) -> None:
    config = CONFIG.model_copy(update={"history": history, "long": history or 3})
    second = [[1], [2, 0], [], [0], [1, 2]]
    batch = inputs(HISTORIES, ROWS, config, long=jagged_of(pa.array(second, pa.list_(pa.int32()))))
    other = inputs(second, ROWS, CONFIG.model_copy(update={"history": history}))
    sparse, wanted = found(batch.sparse), found(other.sparse)
    for name, values in wanted.items():
        if name.startswith("history_"):
            assert sparse[f"long_{name.removeprefix('history_')}"] == values
    first = found(inputs(HISTORIES, ROWS, CONFIG.model_copy(update={"history": history})).sparse)
    assert {name: values for name, values in sparse.items() if not name.startswith("long_")} == first
    if history:
        assert batch.long_length.tolist() == other.history_length.tolist() == [1, 2, 0, 1, 2]
    else:
        assert batch.long_length is None


def test_embeddings_follow_their_item_and_an_empty_history_has_none() -> None:
    batch = inputs([[0, 2], []], [1, 0])
    assert batch.content.tolist() == [[4, 5], [2, 3]]
    assert batch.history_content[0].tolist() == [1, 2]  # mean of [2, 3] and [0, 1]
    assert batch.history_content[1].isnan().all()


def test_an_item_without_a_vector_leaves_the_others_of_a_history_as_they_are() -> None:
    vectors = VECTORS.copy()
    vectors[4:] = np.nan  # item b
    embeddings = EMBEDDINGS.set_column(1, "embedding", pa.FixedSizeListArray.from_arrays(vectors, 2))
    batch = laid_out(ITEMS, embeddings, CONFIG).inputs(
        user=torch.ones(2, dtype=torch.int64),
        history=jagged_of(pa.array([[0, 1, 2], [1]], pa.list_(pa.int32()))),
        rows=torch.tensor([1, 0]),
        dense=torch.zeros(2, 1),
    )
    assert batch.history_content[0].tolist() == [1, 2]
    assert batch.history_content[1].isnan().all()
    assert batch.content[0].isnan().all()


@pytest.mark.parametrize("hashes", [1, 2])
def test_ids_masked_out_are_unknown(hashes: int) -> None:
    importance = 30 if hashes > 1 else 0
    id_tables = {
        name: Table(rows=99, features=(name, *past), hashes=hashes, importance=importance)
        for name, past in (("user", ()), ("item", ("history_item",)))
    }
    config = RankerConfig(tables=id_tables, dense=("age",))
    keep = Kept(torch.tensor([True, False]), torch.tensor([False, True]), torch.ones(2))
    some, none = inputs([[0], [0]], [0, 2], config, keep=keep), inputs([[0], [0]], [0, 2], config)
    nobody = inputs([[], []], [1, 1], config)  # item b has hash 0
    part = "weighted" if hashes > 1 else "sparse"
    some, none, nobody = (getattr(batch, part) for batch in (some, none, nobody))
    assert some["history_item"].values().tolist() == none["history_item"].values().tolist()
    for feature, hidden in (("user", 1), ("item", 0)):
        parts = [jagged[feature].values().reshape(2, hashes) for jagged in (some, none)]
        assert parts[0][hidden].tolist() == [0] * hashes
        assert parts[0][1 - hidden].tolist() == parts[1][1 - hidden].tolist() != [0] * hashes
    if hashes > 1:
        weights = some["item"].weights().reshape(2, hashes)
        assert weights[0].tolist() == nobody["item"].weights().reshape(2, hashes)[0].tolist()


@pytest.mark.parametrize("hashes", [1, 2])
def test_a_semantic_id_loses_its_last_levels(hashes: int) -> None:
    tokens = [[31, 32, 33, 34, 35], [31, 42, 43, 44, 45], [51, 52, 53, 54, 55]]  # of levels 1, 2, 2, 3, 3
    items = ITEMS.set_column(4, "sid", pa.array(tokens, pa.list_(pa.int64())))
    table = Table(rows=99, features=("sid", "history_sid"), hashes=hashes, importance=30 * (hashes > 1))
    levels = torch.tensor([0.0, 0.49, 0.5, 0.99, 1.0])
    of_all = torch.ones(5, dtype=torch.bool)
    batches = [
        laid_out(items, EMBEDDINGS, RankerConfig(tables={"sid": table}, dense=("age",))).inputs(
            user=torch.arange(5),
            history=jagged_of(pa.array(HISTORIES, pa.list_(pa.int32()))),
            rows=torch.tensor(ROWS),
            dense=torch.zeros(5, 1),
            keep=keep,
        )
        for keep in (None, Kept(of_all, of_all, levels))
    ]
    whole, some = (batch.sparse or batch.weighted for batch in batches)
    assert some["history_sid"].values().tolist() == whole["history_sid"].values().tolist()
    rows = [jagged["sid"].values().reshape(5, 5, hashes) for jagged in (whole, some)]
    for number, kept in enumerate([1, 1, 3, 3, 5]):
        assert rows[1][number, :kept].tolist() == rows[0][number, :kept].tolist()
        assert rows[1][number, kept:].unique().tolist() == [0] * (kept < 5)
    assert rows[0].all()


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
    items, examples = laid_out(ITEMS, EMBEDDINGS, CONFIG), Examples(table, ["age"])
    batch = examples.batch(items, torch.tensor([2, 0]), total=8)
    whole = inputs([[0, 1], [1]], [2, 0])
    assert batch.sparse["history_caption"].values().tolist() == whole.sparse["history_caption"].values().tolist()
    assert batch.sparse["user"].values().tolist() == rows_of([3, 1], TABLES["user"])
    assert batch.dense.tolist() == [[2], [0.5]]
    assert examples.dense[1].isnan().all()
    assert (batch.rows, whole.rows) == (8, 2)


def test_examples_are_read_by_pieces_of_their_partitions_and_the_last_ones_kept(tmp_path: Path) -> None:
    count = 7
    table = pa.table(
        {
            "user": np.arange(count),
            "row": pa.array(np.arange(count) % 3, pa.int32()),
            "history": pa.array([[0] * (n % 3) for n in range(count)], pa.list_(pa.int32())),
            "age": pa.array(np.arange(count), pa.float32()),
            "label": pa.array(np.arange(count) % 2, pa.float32()),
        }
    )
    for number, (start, rows) in enumerate([(0, 4), (4, 0), (4, 3)]):
        files.write_part(str(tmp_path / f"part-{number:05d}.parquet"), table.slice(start, rows))
    parts = example_parts(str(tmp_path), ["age"])
    assert parts.rows == [4, 0, 3]
    found = parts.read(((0, 1, 3), (1, 0, 0), (2, 2, 3)))
    assert found.user.tolist() == [1, 2, 6]
    assert found.dense.flatten().tolist() == [1, 2, 6]
    assert found.history.offsets.tolist() == [0, 1, 3, 3]
    assert parts.part(2).user.tolist() == [4, 5, 6]
    assert parts.part(2) is parts.part(2)
    assert len(parts.part(1)) == 0


def test_an_item_without_an_embedding_is_the_users_to_mend() -> None:
    with pytest.raises(UserError, match=r"1 items are missing in embeddings\.$"):
        laid_out(ITEMS, EMBEDDINGS.slice(0, 2), CONFIG)


def anonymous() -> int:
    """Bytes that this process holds for itself."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def test_items_of_a_run_are_those_in_memory_and_nothing_of_them_is_copied(tmp_path: Path) -> None:
    run, count, rng = RunDir(str(tmp_path)), 40_000, np.random.default_rng(0)
    ids = pa.array([f"{n:06d}" for n in range(count)])
    lists = pa.ListArray.from_arrays(
        np.arange(count + 1, dtype=np.int32) * 9, rng.integers(0, 2**62, 9 * count, dtype=np.int64)
    )
    items = pa.table({"item_id": ids, "item": np.arange(count), **dict.fromkeys(("caption", "text", "sid"), lists)})
    vectors = rng.normal(size=(count, 64)).astype(np.float32)
    vectors[::7] = np.nan
    run.write_table(items, "features", "items")
    run.write_table(pa.table({"item_id": ids, "embedding": matrix_column(vectors)}), "embeddings")
    tables = TABLES | {"text": Table(rows=1000, features=("text", "history_text"), hashes=2, importance=100)}
    config = RankerConfig(tables=tables, dense=("age",), content_dim=64)
    history = jagged_of(pa.array([[0, 2, count - 1], [], [7]], pa.list_(pa.int32())))
    pair = {"user": torch.arange(3), "history": history, "rows": torch.tensor([1, 0, 2]), "dense": torch.zeros(3, 1)}
    wanted = laid_out(items, run.read_table("embeddings"), config).inputs(**pair)
    read_items(run, config)  # makes the maps
    gc.collect()
    grown, kept = list[int](), list[Any]()
    for _ in range(3):  # all are kept, so that a copy would grow it each time; a heap grows by a MiB now and then
        before = anonymous()
        mapped = read_items(run, config)
        found = mapped.inputs(**pair)
        grown.append(anonymous() - before)
        kept.append((mapped, found))
    assert min(grown) < 16 * count  # of some 1000 bytes an item
    for name in ("dense", "content", "history_content"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=0, atol=0, equal_nan=True)
    for name in ("sparse", "weighted"):
        one, other = getattr(found, name), getattr(wanted, name)
        assert one.keys() == other.keys()
        assert torch.equal(one.values(), other.values())
        assert torch.equal(one.lengths(), other.lengths())
    assert torch.equal(found.weighted.weights(), wanted.weighted.weights())


@pytest.mark.parametrize("method", [RQKMEANS, RQVAE])
@pytest.mark.parametrize("content", [True, False])
def test_semantic_ids_decode_to_what_their_quantizer_says(tmp_path: Path, method: str, content: bool) -> None:
    run = RunDir(str(tmp_path))
    torch.manual_seed(0)
    learned = method == RQVAE
    quantizer = Quantizer(Architecture(method, 2, (5, 5), 3 if learned else 2, (4,) if learned else (), whiten=learned))
    for tensor in [*quantizer.parameters(), quantizer.mean]:
        torch.nn.init.normal_(tensor)
    codes = np.array([[4, 0, -1], [1, 2, 0], [1, 2, 1]], np.int32)  # the last two differ in their suffixes
    run.write_table(ITEMS, "features", "items")
    run.write_table(EMBEDDINGS, "embeddings")
    run.write_table(pa.table({"item_id": ["b", "c", "a"], "codes": matrix_column(codes)}), "sids")
    settings = RankerSettings(content=content, sid_decoded=True, tables={"interests": None, "title": None})
    config = settings.ranker({"hash": {}, "dense": ["age"], "history": 5}, 2)
    with pytest.raises(ArtifactError, match="quantizer"):
        read_items(run, config)
    quantizer.save(run.uri("models", "quantizer"))
    batch = read_items(run, config).inputs(
        user=torch.arange(1, 4),
        history=jagged_of(pa.array([[0, 1], [], [2]], pa.list_(pa.int32()))),
        rows=torch.tensor([0, 1, 2]),
        dense=torch.zeros(3, 1),
    )
    wanted = quantizer.decode(torch.tensor(codes[[2, 0, 1], :2]))  # of a, b, c
    assert batch.content.shape == (3, config.content_dim) == (3, 4 if content else 2)
    torch.testing.assert_close(batch.content[:, -2:], wanted)
    assert torch.equal(batch.content[0], batch.content[2]) != content
    torch.testing.assert_close(batch.history_content[0], batch.content[:2].mean(0))
    assert torch.equal(batch.history_content[2], batch.content[2])
    assert batch.history_content[1].isnan().all()  # nothing known: zeros once it is standardised
    ranker = Ranker(config).eval()
    ranker.embeddings.to_empty(device="cpu")
    for parameter in ranker.parameters():
        torch.nn.init.normal_(parameter)
    unknown = ranker(batch)
    batch.history_content = batch.history_content.nan_to_num(0.0)
    assert torch.equal(ranker(batch), unknown)


def test_without_a_semantic_id_an_item_has_nothing_to_decode(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    Quantizer(Architecture(RQKMEANS, 2, (5,), 2)).save(run.uri("models", "quantizer"))
    run.write_table(pa.table({"item_id": ["a"], "codes": matrix_column(np.array([[0, -1]], np.int32))}), "sids")
    with pytest.raises(ArtifactError, match="2 items are missing in sids"):
        read_decoded(run, ITEMS["item_id"])


def test_semantic_ids_are_decoded_or_not() -> None:
    assert not RankerSettings().sid_decoded
    with pytest.raises(ValueError, match="sid_decoded"):
        RankerSettings(sid_decoded="sometimes")
