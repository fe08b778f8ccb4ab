"""What an object store does that a disk does not, on a real S3 server."""

from __future__ import annotations

import threading
import uuid

import numpy as np
import pyarrow as pa
import pytest
from s3fs import S3File, S3FileSystem

from storage import exchange, files
from storage.errors import UserError
from storage.manifest import Manifest, read_manifest, write_manifest
from storage.run import RunDir
from tests.s3 import KEYS, Server


@pytest.fixture
def root(s3: Server) -> str:
    return s3.bucket(f"b{uuid.uuid4().hex}")


def test_what_another_process_writes_is_listed_at_once(s3, root):
    uri = files.join(root, "run", "marks")
    files.write_bytes(files.join(uri, "part-0.parquet"), b"old")
    assert len(files.parts(uri)) == 1
    before = files.signature(uri)
    s3.put(files.join(uri, "part-1.parquet"), b"new")
    assert files.parts(uri) == [files.join(uri, f"part-{number}.parquet") for number in (0, 1)]
    assert files.signature(uri) != before
    assert files.exists(files.join(uri, "part-1.parquet"))
    files.remove(uri)
    assert not files.exists(uri)


def test_a_piece_of_an_exchanged_file_is_fetched_without_those_of_others(s3, root, monkeypatch):
    uri, fetched = files.join(root, "dealt.arrow"), list[int]()
    exchange.deal(uri, pa.table({"row": np.arange(200_000)}), np.arange(200_000) % 100, 100)
    fetch = S3File._fetch_range

    def counted(file: S3File, start: int, end: int) -> bytes:
        fetched.append(end - start)
        return fetch(file, start, end)

    monkeypatch.setattr(S3File, "_fetch_range", counted)
    assert exchange.collect([uri], 7)["row"].to_pylist() == list(range(7, 200_000, 100))
    fs, path = files.filesystem(uri)
    assert sum(fetched) < fs.size(path) / 20


def test_a_manifest_is_read_whole_while_it_is_written(s3, root):
    """One object, put at once: neither a part of it nor none is ever seen, and nothing is left beside it."""
    write_manifest(root, Manifest(name="n0"))
    before = s3.requests()["PUT"]
    writer = threading.Thread(target=lambda: [write_manifest(root, Manifest(name=f"n{i}")) for i in range(20)])
    writer.start()
    seen = []
    while writer.is_alive():
        seen.append(read_manifest(root).name)
    assert {name[0] for name in seen} == {"n"}
    assert s3.requests()["PUT"] - before == 20
    fs, path = files.filesystem(root)
    assert fs.find(path) == [f"{path}/manifest.json"]


def test_a_manifest_takes_the_requests_of_one_object_and_a_store_that_does_not_give_it_says_why(s3, root):
    assert read_manifest(root) is None
    write_manifest(root, Manifest(name="n"))
    counts = [sum(s3.requests().values())]
    for read in (lambda: read_manifest(root), lambda: files.read_bytes(files.join(root, "manifest.json"))):
        read()
        counts.append(sum(s3.requests().values()))
    assert counts[1] - counts[0] == counts[2] - counts[1]
    with pytest.raises(UserError, match=r"^There is no bucket s3://nowhere"):
        read_manifest("s3://nowhere/run")
    s3.fail(403)
    with pytest.raises(UserError, match=r"refuses to read s3://"):
        read_manifest(root)


def test_a_write_that_fails_leaves_what_was_there(s3, root):
    uri = files.join(root, "a.json")
    files.write_json(uri, 1)
    s3.fail(403, methods="PUT")
    with pytest.raises(PermissionError):
        files.write_json(uri, 2)
    s3.fail(403, times=0)
    assert files.read_json(uri) == 1


@pytest.mark.parametrize("status", [500, 503])
def test_requests_that_fail_a_few_times_are_made_again(s3, root, status):
    table = pa.table({"x": list(range(10))})
    s3.fail(status, times=2)
    RunDir(root).write_table(table, "items")
    s3.fail(status, times=2)
    assert RunDir(root).read_table("items").equals(table)
    s3.fail(status, times=2)
    assert files.exists(files.join(root, "items"))


def test_a_missing_bucket_is_told_and_not_made(s3):
    with pytest.raises(UserError, match=r"^There is no bucket s3://nowhere: make it, or name another\.$"):
        files.probe("s3://nowhere/run")
    with pytest.raises(UserError, match=r"^There is no bucket s3://nowhere"):
        files.probe("s3://nowhere/run", write=True)
    with pytest.raises(FileNotFoundError):
        files.write_bytes("s3://nowhere/run/a", b"x")
    assert not files.exists("s3://nowhere")


def test_a_folder_that_is_not_there_yet_is_no_mistake(s3, root):
    files.probe(files.join(root, "run"), write=True)
    fs, path = files.filesystem(root)
    assert fs.find(path) == []


def test_keys_that_are_refused_are_told(s3, root):
    s3.fail(401)
    with pytest.raises(UserError, match=r"refuses to read s3://.* \(InvalidAccessKeyId\): set AWS_ACCESS_KEY_ID and"):
        files.probe(files.join(root, "run"))
    s3.fail(403, methods="PUT POST")
    files.probe(root)
    with pytest.raises(UserError, match=r"refuses to write s3://.* \(AccessDenied\): set .* keys that may write there"):
        files.probe(files.join(root, "run"), write=True)


@pytest.fixture
def _new_client():
    """A client keeps the address and the keys that it began with."""
    S3FileSystem.clear_instance_cache()
    yield
    S3FileSystem.clear_instance_cache()


@pytest.mark.usefixtures("_new_client")
def test_missing_keys_are_told(s3, root, monkeypatch):
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    with pytest.raises(UserError, match=r"\(Unable to locate credentials\): set AWS_ACCESS_KEY_ID and"):
        files.probe(root)


@pytest.mark.usefixtures("_new_client")
def test_a_server_that_is_not_there_is_told(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(UserError, match=r"^s3://b does not answer \(Could not connect to the endpoint URL"):
        files.probe("s3://b/run")
