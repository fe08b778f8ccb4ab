from __future__ import annotations

import resource
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from storage import files
from storage.errors import UserError
from storage.media.sources import Sources


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    yield str(tmp_path) if request.param == "local" else "memory://run"
    fsspec.filesystem("memory").store.clear()


def test_table_comes_back_from_its_parts_in_order(root):
    table = pa.table({"x": list(range(10))})
    files.write_table(files.join(root, "t"), table, part_rows=3)
    assert files.read_table(files.join(root, "t")).equals(table)


@pytest.mark.parametrize("sizes", [[10], [1, 1, 8], [3, 3, 3, 1], [0, 10, 0], [2, 8]])
def test_parts_are_those_of_the_whole_table_however_it_comes(root, sizes):
    table, starts = pa.table({"x": list(range(10))}), [sum(sizes[:at]) for at in range(len(sizes))]
    files.write_table(files.join(root, "whole"), table, part_rows=3)
    pieces = (table.slice(start, size) for start, size in zip(starts, sizes, strict=True))
    assert files.write_parts(files.join(root, "pieces"), pieces, part_rows=3) == 10
    for part in range(4):
        whole, piece = (files.read_table(files.part_uri(files.join(root, name), part)) for name in ("whole", "pieces"))
        assert whole.equals(piece)
    assert not files.exists(files.part_uri(files.join(root, "pieces"), 4))


def test_a_range_of_rows_is_that_of_the_whole_table(root):
    uri, table = files.join(root, "t"), pa.table({"x": list(range(10)), "y": list(range(10))})
    files.write_table(uri, table, part_rows=3)
    for start in range(11):
        for stop in range(start, 13):
            assert files.read_range(uri, start, stop, ["x"]).equals(table.select(["x"]).slice(start, stop - start))


def test_writing_a_table_again_leaves_nothing_of_the_old_one(root):
    uri = files.join(root, "t")
    files.write_table(uri, pa.table({"x": list(range(10))}), part_rows=3)
    files.write_table(uri, pa.table({"x": [7]}), part_rows=3)
    assert files.read_table(uri)["x"].to_pylist() == [7]


def test_an_empty_table_keeps_its_schema(root):
    empty = pa.table({"x": pa.array([], pa.string())})
    files.write_table(files.join(root, "t"), empty)
    assert files.read_table(files.join(root, "t")).schema == empty.schema


def test_write_bytes_replaces_and_leaves_no_temporary_file(tmp_path):
    uri = str(tmp_path / "a" / "f")
    files.write_bytes(uri, b"old")
    files.write_bytes(uri, b"new")
    assert files.read_bytes(uri) == b"new"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["f"]


def test_a_failed_write_leaves_the_old_content(tmp_path, monkeypatch):
    uri = str(tmp_path / "f")
    files.write_bytes(uri, b"old")

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.mv", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_bytes(uri, b"new")
    assert files.read_bytes(uri) == b"old"


def test_an_unknown_scheme_is_one_sentence():
    with pytest.raises(UserError, match="Cannot open 'nope://x'"):
        files.filesystem("nope://x")


def test_a_file_that_finds_no_room_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    files.write_bytes(str(tmp_path / "a"), b"old")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limit[1]))
    try:
        with pytest.raises(OSError) as told:
            files.write_bytes(str(tmp_path / "a"), bytes(4096))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert told.value.filename == str(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert files.read_bytes(str(tmp_path / "a")) == b"old"


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.absolute("~/a") == files.filesystem("~/a")[1] == str(tmp_path / "a")
    assert files.absolute("s3://b/~/a") == "s3://b/~/a"
    assert Sources(roots=("~/a",)).roots == (str(tmp_path / "a"),)
