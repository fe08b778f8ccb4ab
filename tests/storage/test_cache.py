from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.cache import Cache
from storage.errors import UserError

REPOSITORY = Path(__file__).parent.parent.parent
KEYS = [bytes([first]) * 16 for first in range(1, 40)]


@pytest.fixture(params=["local", "memory"])
def cache(request, tmp_path):
    yield Cache(str(tmp_path / "cache") if request.param == "local" else "memory://cache")
    fsspec.filesystem("memory").store.clear()


def objects(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_was_put_is_found_and_nothing_else(cache):
    values = {key: os.urandom(size) for size, key in enumerate(KEYS[:20])}
    assert cache.get_many("a", KEYS) == {}
    cache.put_many("a", values)
    assert cache.get_many("a", KEYS) == values
    assert cache.get_many("b", KEYS) == {}


def test_found_values_come_in_the_order_of_the_keys(cache):
    cache.put_many("a", {key: key for key in KEYS})
    asked = [KEYS[7], KEYS[2], KEYS[7], KEYS[5]]
    assert list(cache.get_many("a", asked)) == [KEYS[7], KEYS[2], KEYS[5]]


def test_a_later_value_takes_the_place_of_the_earlier(cache):
    cache.put_many("a", {KEYS[0]: b"old and long"})
    cache.put_many("a", {KEYS[0]: b"new"})
    assert cache.get_many("a", KEYS) == {KEYS[0]: b"new"}


def test_a_namespace_is_forgotten_by_deleting_its_folder(tmp_path):
    cache = Cache(str(tmp_path))
    cache.put_many("caption-1", {KEYS[0]: b"x"})
    (entry,) = objects(tmp_path)
    assert entry == tmp_path / "caption-1" / KEYS[0].hex()[:2] / KEYS[0].hex()


@given(damage=st.data())
def test_a_damaged_object_is_a_miss(tmp_path_factory, damage):
    folder = tmp_path_factory.mktemp("cache")
    cache = Cache(str(folder))
    cache.put_many("a", {KEYS[0]: b"a caption of some length", KEYS[1]: b"whole"})
    entry = folder / "a" / KEYS[0].hex()[:2] / KEYS[0].hex()
    content = entry.read_bytes()
    if damage.draw(st.booleans()):
        entry.write_bytes(content[: damage.draw(st.integers(0, len(content) - 1))])
    else:
        at, bit = damage.draw(st.integers(0, len(content) - 1)), damage.draw(st.integers(0, 7))
        entry.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
    assert cache.get_many("a", KEYS) == {KEYS[1]: b"whole"}


def test_an_object_under_another_key_is_a_miss(tmp_path):
    cache = Cache(str(tmp_path))
    cache.put_many("a", {KEYS[0]: b"x"})
    (entry,) = objects(tmp_path)
    stranger = tmp_path / "a" / KEYS[1].hex()[:2] / KEYS[1].hex()
    stranger.parent.mkdir()
    stranger.write_bytes(entry.read_bytes())
    assert list(cache.get_many("a", KEYS)) == [KEYS[0]]


def test_a_store_that_fails_costs_its_entries_and_one_warning(tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    cache = Cache(str(tmp_path / "file" / "cache"))  # a folder that cannot be made, whoever runs this
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            cache.put_many("a", dict.fromkeys(KEYS[:3], b"x"))
            assert cache.get_many("a", KEYS) == {}
    assert [("written" in line, "read" in line) for line in caplog.messages] == [(True, False), (False, True)]


def test_a_disk_that_fills_leaves_no_part_behind(tmp_path, monkeypatch):
    cache = Cache(str(tmp_path))
    cache.put_many("a", {KEYS[0]: b"old"})

    def fill(path: Path, content: bytes) -> None:
        with path.open("wb") as stream:
            stream.write(content[:3])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fill)
        cache.put_many("a", {KEYS[0]: b"new", KEYS[1]: b"new"})
    assert cache.get_many("a", KEYS) == {KEYS[0]: b"old"}
    assert len(objects(tmp_path)) == 1


def test_an_unknown_scheme_is_one_sentence():
    with pytest.raises(UserError, match="Cannot open 'nope://x'"):
        Cache("nope://x").get_many("a", KEYS)


WRITER = """
import itertools, sys
from storage.cache import Cache
cache = Cache(sys.argv[1])
print("ready", flush=True)
for turn in itertools.count():
    cache.put_many("a", {bytes([i]) * 16: bytes([i]) * 6000 for i in range(turn % 7, 200)})
"""


def test_writers_at_once_that_are_killed_leave_whole_entries_only(tmp_path):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    cache = Cache(str(tmp_path))
    keys = [bytes([i]) * 16 for i in range(200)]
    try:
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        found: set[bytes] = set()
        deadline = time.monotonic() + 30
        looks = 0
        while (len(found) < 50 or looks < 50) and time.monotonic() < deadline:
            now = set(cache.get_many("a", keys))
            assert found <= now  # what is there stays there while it is written again
            found = now
            looks += 1
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            assert writer.stdout is not None
            writer.stdout.close()
    left = cache.get_many("a", keys)
    assert len(left) >= 50
    assert left == {key: key[:1] * 6000 for key in left}
    names = {path.name for path in objects(tmp_path) if not path.name.startswith(".")}
    assert names == {key.hex() for key in left}  # a name is only ever given to a whole object


class Store(BaseHTTPRequestHandler):
    """An object store: slow, and with a key that it fails on."""

    held: dict[str, bytes] = {}  # noqa: RUF012 - shared by all requests on purpose
    together: list[int] = [0]  # noqa: RUF012 - threads alive, as each request sees them

    def do_GET(self) -> None:
        self.together.append(threading.active_count())
        time.sleep(0.3)
        status = 500 if self.path.endswith(KEYS[3].hex()) else 200 if self.path in self.held else 404
        self._answer(status, self.held.get(self.path, b"") if status == 200 else b"")

    def do_PUT(self) -> None:
        self.held[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(201, b"")

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 64


@pytest.fixture
def store() -> Iterator[str]:
    server = Server(("127.0.0.1", 0), Store)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/cache"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_remote_store_is_asked_for_all_keys_at_once(store):
    cache = Cache(store)
    cache.put_many("a", {key: key * 3 for key in KEYS[:20]})
    found = cache.get_many("a", KEYS)
    assert max(Store.together) > len(KEYS) / 2
    assert found == {key: key * 3 for key in KEYS[:20] if key != KEYS[3]}  # the others come though one request fails


def test_a_remote_store_that_is_gone_costs_its_entries_alone():
    cache = Cache("http://127.0.0.1:9/cache")  # nobody listens on the discard port
    cache.put_many("a", {KEYS[0]: b"x", KEYS[1]: b"y"})
    assert cache.get_many("a", KEYS[:2]) == {}
