from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.semantic_ids.quantizer import Architecture, Quantizer
from operators import sid_registry
from operators.columns import matrix_column
from operators.sid_registry import add_sids, added_sids, give_sids, known_sids, quantizer_digest, reference_embeddings
from storage import files
from storage.errors import UserError
from storage.run import RunDir

REPOSITORY = Path(__file__).parents[2]


def write_quantizer(uri: str, seed: int = 0) -> None:
    torch.manual_seed(seed)
    quantizer = Quantizer(Architecture("rqvae", 3, codebook_sizes=(8, 16), latent_dim=4, hidden_dims=(8,)))
    for codebook in quantizer.codebooks:
        torch.nn.init.normal_(codebook)
    quantizer.save(uri)


@pytest.fixture(params=["local", "memory"])
def run(request, tmp_path) -> RunDir:
    """A run that has given two items their SIDs: one alone, one as the first of a group that lost the others."""
    return write_run(str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4().hex}")


def write_run(root: str) -> RunDir:
    run = RunDir(root)
    write_quantizer(run.uri("models", "quantizer"))
    run.write_table(
        pa.table({"item_id": ["alone", "first"], "codes": matrix_column(np.array([[0, 0, -1], [1, 1, 0]]))}), "sids"
    )
    return run


def rows(embeddings: torch.Tensor) -> pa.Table:
    vectors = pa.array(embeddings.tolist(), pa.list_(pa.float32(), 3))
    return pa.table({"item_id": [f"i{n}" for n in range(len(embeddings))], "embedding": vectors})


def coded(codes: dict[str, tuple[int, int]]) -> pa.Table:
    """Items with their codes, and an embedding that differs from item to item."""
    vectors = np.array([[sum(item_id.encode()), len(item_id), 0] for item_id in codes], np.float32).reshape(-1, 3)
    return pa.table(
        {
            "item_id": pa.array(list(codes), pa.string()),
            "embedding": pa.array(list(vectors), pa.list_(pa.float32(), 3)),
            "codes": matrix_column(np.array(list(codes.values()), np.int32).reshape(-1, 2)),
        }
    )


def spelled(run: RunDir) -> dict[str, tuple[int, ...]]:
    ids, codes = known_sids(run)
    ids = ids.to_pylist()
    assert len(set(ids)) == len(ids)
    return dict(zip(ids, map(tuple, codes.tolist()), strict=True))


def test_known_items_keep_their_sids_though_their_content_has_changed() -> None:
    known = np.array([[0, 0, -1], [1, 1, 0]], np.int32)
    found = give_sids(
        ["new", "b", "other"],
        np.array([[1, 1], [5, 5], [0, 0]]),
        np.arange(3, dtype=np.uint64),
        known_ids=["a", "b"],
        known_codes=known,
    )
    assert found.dtype == np.int32
    assert found.tolist() == [[1, 1, 1], [1, 1, 0], [0, 0, 0]]


def give(run: RunDir, items: pa.Table, **policy: Any) -> set[str]:
    return add_sids(run, items, quantizer=quantizer_digest(run), **policy)


def test_codes_of_another_fit_are_not_taken(run: RunDir) -> None:
    with pytest.raises(UserError, match="fitted anew meanwhile"):
        add_sids(run, coded({"new": (1, 1)}), quantizer="of yesterday")
    assert added_sids(run) == []


def test_what_is_added_stands_beside_the_fit_and_stays(run: RunDir) -> None:
    added = give(run, coded({"alone": (7, 7), "twin": (0, 0), "far": (5, 5)}))
    assert added == {"twin", "far"}
    after = {"alone": (0, 0, -1), "first": (1, 1, 0), "twin": (0, 0, 0), "far": (5, 5, -1)}
    assert spelled(run) == after
    assert give(run, coded({"twin": (3, 3), "far": (0, 0)})) == set()
    assert give(run, coded({"late": (5, 5), "twin": (3, 3)})) == {"late"}
    assert spelled(run) == after | {"late": (5, 5, 0)}
    assert run.read_table("sids").num_rows == 2
    assert [part.column_names for part in added_sids(run)] == [["item_id", "embedding", "codes"]] * 2


codes_of_few = st.tuples(st.integers(0, 1), st.integers(0, 1))
arrivals = st.lists(st.dictionaries(st.sampled_from([f"i{n}" for n in range(9)]), codes_of_few), max_size=4)


@settings(max_examples=20)
@given(arrivals, st.booleans())
def test_over_any_arrivals_no_sid_is_given_twice_and_none_moves(rounds, always) -> None:
    run = write_run(f"memory://{uuid.uuid4().hex}")
    before = spelled(run)
    for arrived in rounds:
        added = give(run, coded(arrived), always=always)
        after = spelled(run)
        assert len(set(after.values())) == len(after)
        assert before.items() <= after.items()
        assert added == after.keys() - before.keys() == arrived.keys() - before.keys()
        assert all(after[item][:2] == arrived[item] for item in added)
        before = after


def test_a_caller_that_loses_the_race_goes_by_what_the_other_has_given(run: RunDir, monkeypatch) -> None:
    create, raced = sid_registry._create, []

    def late(uri: str, table: pa.Table) -> None:
        if not raced:
            raced.append(uri)
            assert give(run, coded({"theirs": (4, 4), "both": (1, 1)})) == {"theirs", "both"}
        create(uri, table)

    monkeypatch.setattr(sid_registry, "_create", late)
    assert give(run, coded({"ours": (4, 4), "both": (2, 2)})) == {"ours"}
    given_ = spelled(run)
    assert (given_["theirs"], given_["both"], given_["ours"]) == ((4, 4, -1), (1, 1, 1), (4, 4, 0))
    assert len(added_sids(run)) == 2


def test_callers_at_the_same_time_share_nothing(tmp_path) -> None:
    run, callers, each = write_run(str(tmp_path / "run")), 4, 4
    start = Barrier(callers)

    def call(caller: int) -> set[str]:
        start.wait()
        return {
            item for n in range(each) for item in give(run, coded({f"{caller}-{n}": (1, 1), f"shared-{n}": (2, 2)}))
        }

    with ThreadPoolExecutor(callers) as threads:
        added = list(threads.map(call, range(callers)))
    given_ = spelled(run)
    assert len(set(given_.values())) == len(given_) == 2 + callers * each + each
    assert sum(map(len, added)) == len(given_) - 2  # each item was added by one caller


def test_what_a_killed_caller_leaves_is_no_part(tmp_path) -> None:
    run = write_run(str(tmp_path))
    give(run, coded({"a": (4, 4)}))
    (folder,) = (tmp_path / "sids_added").iterdir()
    assert [path.name for path in folder.iterdir()] == ["part-00000.parquet"]
    (folder / ".1234.tmp").write_bytes(b"half")
    assert give(run, coded({"b": (4, 4)})) == {"b"}


def test_a_full_prefix_adds_nothing_at_all(run: RunDir) -> None:
    with pytest.raises(UserError, match="max_suffixes"):
        give(run, coded({"good": (6, 6), "a": (1, 1), "b": (1, 1)}), max_suffixes=2)
    assert spelled(run).keys() == {"alone", "first"}


def test_a_refit_starts_afresh(run: RunDir) -> None:
    give(run, coded({"a": (4, 4)}))
    write_quantizer(run.uri("models", "quantizer"), seed=1)
    assert spelled(run).keys() == {"alone", "first"}
    assert give(run, coded({"b": (4, 4)})) == {"b"}
    assert spelled(run)["b"] == (4, 4, -1)


def test_an_added_item_that_the_catalogue_takes_up_is_known_once(run: RunDir) -> None:
    give(run, coded({"a": (4, 4), "b": (4, 4)}))
    before = spelled(run)
    taken = [*run.read_table("sids").to_pylist(), {"item_id": "a", "codes": list(before["a"])}]
    run.write_table(pa.Table.from_pylist(taken, run.read_table("sids").schema), "sids")
    assert spelled(run) == before
    assert give(run, coded({"c": (4, 4)})) == {"c"}
    assert spelled(run)["c"] == (4, 4, 2)


def test_new_items_are_compared_with_the_same_few_whatever_the_order_of_rows(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sid_registry, "REFERENCE_ROWS", 10)
    table = rows(torch.arange(120.0).reshape(40, 3))
    found = []
    for name, order in (("a", np.arange(40)), ("b", np.arange(40)[::-1])):
        run = RunDir(str(tmp_path / name))
        files.write_table(run.uri("embeddings"), table.take(order), part_rows=16)
        run.write_table(table.select(["item_id"]), "sids")
        found.append({tuple(row) for row in reference_embeddings(run).tolist()})
    assert found[0] == found[1] <= {tuple(row) for row in table["embedding"].to_pylist()}
    assert len(found[0]) == 10
