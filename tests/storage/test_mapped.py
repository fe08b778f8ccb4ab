from __future__ import annotations

import errno
import fcntl
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.columns import matrix_column
from storage import mapped
from storage.errors import UserError
from storage.mapped import map_columns, map_table
from storage.run import RunDir

WIDTH = 3


def table_of(rows: list[tuple[str, int, list[int]]]) -> pa.Table:
    texts, numbers, lists = ([row[at] for row in rows] for at in range(3))
    matrix = np.arange(len(rows) * WIDTH, dtype=np.float32).reshape(-1, WIDTH)
    return pa.table(
        {
            "item_id": pa.array(texts, pa.string()),
            "number": pa.array(numbers, pa.int64()),
            "list": pa.array(lists, pa.list_(pa.int64())),
            "vector": matrix_column(matrix),
        }
    )


row = st.tuples(st.text(max_size=4), st.integers(-9, 9), st.lists(st.integers(0, 9), max_size=3))


@settings(max_examples=25)
@given(rows=st.lists(row, max_size=20), size=st.integers(1, 7))
def test_a_mapped_table_is_the_table_in_one_chunk(tmp_path_factory, rows, size) -> None:
    run, table = RunDir(str(tmp_path_factory.mktemp("run"))), table_of(rows)
    run.write_table(table, "things")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapped, "BATCH_ROWS", size)
        found = map_columns(run, "things", columns=table.column_names)
    assert found.equals(table)
    assert all(column.num_chunks == 1 for column in found.columns)


def test_it_is_made_once_and_anew_when_the_table_has_changed(tmp_path: Path, monkeypatch) -> None:
    run = RunDir(str(tmp_path))
    run.write_table(table_of([("a", 1, [1])]), "things")
    first = map_columns(run, "things", columns=["item_id"])
    with monkeypatch.context() as patch:
        patch.setattr(mapped, "_write", lambda *_: pytest.fail("made again"))
        assert map_columns(run, "things", columns=["item_id"]).equals(first)
    run.write_table(table_of([("b", 2, []), ("c", 3, [])]), "things")
    assert map_columns(run, "things", columns=["item_id"])["item_id"].to_pylist() == ["b", "c"]
    assert first["item_id"].to_pylist() == ["a"]  # who has it open keeps it
    assert len(list(tmp_path.glob("checkpoints/maps/*/*.arrow"))) == 1


def test_old_tables_of_other_runs_leave_the_folder_of_temporary_files(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def made(place: str, name: str) -> Path:
        run = RunDir(f"memory://mapped/{place}")
        run.write_table(table_of([("a", 1, [1])]), name)
        before = set(tmp_path.glob("*/maps/*/*.arrow"))
        tables.append(map_columns(run, name, columns=["item_id"]))
        (path,) = set(tmp_path.glob("*/maps/*/*.arrow")) - before
        return path

    tables: list[pa.Table] = []
    old, new, mine = made("old", "things"), made("new", "things"), made("mine", "things")
    for path in (old, mine):
        os.utime(path, (time.time() - 90_000,) * 2)
    other = made("mine", "others")
    assert set(tmp_path.glob("*/maps/*/*.arrow")) == {new, mine, other}
    assert tables[0]["item_id"].to_pylist() == ["a"]  # who has it open keeps it
    assert made("old", "things").parent == old.parent


def test_a_table_that_another_process_removes_just_now_is_made_again(tmp_path: Path, monkeypatch) -> None:
    run, opened = RunDir(str(tmp_path)), pa.memory_map
    run.write_table(table_of([("a", 1, [1])]), "things")
    map_columns(run, "things", columns=["item_id"])

    def removed(path: str) -> pa.MemoryMappedFile:
        monkeypatch.undo()
        os.remove(path)  # noqa: PTH107
        return opened(path)

    monkeypatch.setattr(pa, "memory_map", removed)
    assert map_columns(run, "things", columns=["item_id"])["item_id"].to_pylist() == ["a"]


def test_of_many_that_need_a_table_at_once_one_makes_it(tmp_path: Path) -> None:
    run, schema, made = RunDir(str(tmp_path)), pa.schema([("n", pa.int64())]), []

    def batches() -> list[pa.RecordBatch]:
        made.append(1)
        time.sleep(0.2)
        return pa.table({"n": [1]}, schema=schema).to_batches()

    with ThreadPoolExecutor(4) as pool:  # threads lock files against each other as processes do
        tables = [pool.submit(map_table, run, "numbers", ["state"], schema, batches) for _ in range(4)]
        assert [table.result()["n"].to_pylist() for table in tables] == [[1]] * 4
    assert len(made) == 1


def test_values_are_those_of_the_file_without_a_copy(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    run.write_table(table_of([("a", 1, [1, 2])] * 5), "things")
    before = pa.total_allocated_bytes()
    found = map_columns(run, "things", columns=["item_id", "vector", "list"])
    values = found["vector"].chunk(0).flatten().to_numpy(zero_copy_only=True)
    assert values.shape == (15,)
    assert pa.total_allocated_bytes() - before < 1024


def test_null_is_refused(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    run.write_table(pa.table({"item_id": ["a", None]}), "things")
    with pytest.raises(ValueError, match="1 values of a mapped column are NULL"):
        map_columns(run, "things", columns=["item_id"])
    assert [path.name for path in tmp_path.glob("checkpoints/maps/*/*")] == ["things.lock"]


def test_hosts_that_do_not_share_locks_may_make_one_map_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, schema = RunDir(str(tmp_path)), pa.schema([("n", pa.int64())])

    def batches() -> list[pa.RecordBatch]:
        return pa.table({"n": [1]}, schema=schema).to_batches()

    def other_first() -> list[pa.RecordBatch]:
        with monkeypatch.context() as patch:
            patch.setattr(os, "uname", lambda: SimpleNamespace(nodename="other"))
            patch.setattr(fcntl, "flock", lambda *_: None)
            map_table(run, "numbers", ["state"], schema, batches)
        return batches()

    assert map_table(run, "numbers", ["state"], schema, other_first)["n"].to_pylist() == [1]
    assert sorted(path.suffix for path in tmp_path.glob("checkpoints/maps/*/*")) == [".arrow", ".lock"]


def test_what_a_killed_process_has_left_is_removed_and_what_another_host_is_making_stays(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    run.write_table(table_of([("a", 1, [1])]), "things")
    map_columns(run, "things", columns=["number"])
    (folder,) = tmp_path.glob("checkpoints/maps/*")
    for name in (f"things.{os.uname().nodename}.dead", "things.other.alive"):
        (folder / name).mkdir()
        (folder / name / "table.arrow").write_bytes(b"half")
    map_columns(run, "things", columns=["item_id"])
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["things.other.alive"]


def test_on_a_disk_without_locks_each_makes_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with mapped._alone(tmp_path, "things") as one, mapped._alone(tmp_path, "things") as other:
        assert {one, other} == {path for path in tmp_path.iterdir() if path.is_dir()}


def test_lists_that_are_too_long_together_are_told(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(mapped, "LONGEST", 5)
    run = RunDir(str(tmp_path))
    run.write_table(table_of([("a", 1, [1, 2, 3]), ("b", 2, [4, 5, 6])]), "things")
    with pytest.raises(UserError, match=r"items are too many.* 5 values at most"):
        map_columns(run, "things", columns=["list"])
