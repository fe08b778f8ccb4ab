"""A service whose processes are killed under load: no client fails twice, and what was acknowledged is there, once."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import polars as pl
import psutil
import pytest

from examples.client import Client
from storage.run import RunDir
from tests.serving.deployments.load import Clients, kill_all, two_replicas
from tests.stores import redis_server
from tests.workflows.test_sid import WORDS
from workflows.catalogs.export import export

pytestmark = pytest.mark.soak

REPLICA = "ServeReplica:tesserec:Service"  # in the name of a replica's process
KILLS, APART_S, ALL_KILLS = 8, 20.0, 5


class Load(Clients):
    """Clients that read and write until they are stopped.

    Attributes:
        failed: what went wrong after the client's one retry.
        users, items: who did something, once each, and what was posted, once each; as the service acknowledged it.
    """

    def __init__(self, url: str, name: str = "") -> None:
        self.url, self.name = url, name
        self.users, self.items = list[str](), list[str]()
        works = ((self._reads, 0.02), (self._acts, 0.02), (self._acts, 0.02), (self._posts, 0.5))
        super().__init__([partial(self._repeat, at, *each) for at, each in enumerate(works)])

    @property
    def answers(self) -> int:
        """Writes that were acknowledged."""
        return len(self.users) + len(self.items)

    def _repeat(self, thread: int, work: Callable[[Client, str], None], pause_s: float) -> None:
        with Client(self.url, timeout_s=90) as client:
            for number in itertools.count():
                if self.done.is_set():
                    return
                try:
                    work(client, f"{self.name}{thread}-{number}")
                except Exception as error:  # noqa: BLE001 - whatever it is
                    self.failed.append(error)
                time.sleep(pause_s)

    def _reads(self, client: Client, name: str) -> None:
        page = client.recommend(history=["item-1", *self.items[-2:]], k=3)
        client.item(page["items"][0]["item_id"])
        client.search("steel pan", k=3)

    def _acts(self, client: Client, name: str) -> None:
        page = client.recommend(user_id=f"user {name}", k=3)
        shown = page["items"][0]["item_id"]
        client.event(f"user {name}", shown, "like", recommendation_id=page["recommendation_id"])
        self.users.append(f"user {name}")

    def _posts(self, client: Client, name: str) -> None:
        title = f"{WORDS[len(self.items) % len(WORDS)]} {name}"
        assert client.post_item(f"new {name}", title=title)["item_id"] == f"new {name}"
        self.items.append(f"new {name}")


def replicas(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The replicas of a service, oldest first."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if REPLICA in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return sorted(found, key=lambda child: child.create_time())


def wait_for_two(url: str, process: subprocess.Popen[str]) -> None:
    """Waits until two replicas are there and say that they are ready."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            told = httpx.get(f"{url}/v1/runs", timeout=60).json()["replicas"]
        except (httpx.HTTPError, KeyError):
            told = {}
        if told == {"alive": 2, "serving": 2} and len(replicas(process)) == 2:
            return
        time.sleep(0.5)
    raise AssertionError(f"two replicas are not ready: {told}")


def check_kept(run: RunDir, place: Path, store: str, loads: list[Load]) -> None:
    """Whatever was acknowledged is in an export, once; and nothing is there twice."""
    catalog = str(Path(run.root).parent / "catalog")
    export(run.root, store, str(place / "export"), 0, catalog, lambda done, total: None)
    items = pl.read_parquet(place / "export" / "items.parquet")
    log = pl.concat(pl.read_parquet(part) for part in (place / "export" / "interactions").iterdir())
    ids, users = Counter(items["item_id"].to_list()), Counter(log.filter(pl.col("label") > 0)["user_id"].to_list())
    for load in loads:
        assert not set(load.items) - set(ids)
        assert not set(load.users) - set(users)
    assert set(ids.values()) == {1}
    assert {user: count for user, count in users.items() if "-" in user and count > 1} == {}


def show(line: str) -> None:
    """Tells how far a long test has come."""
    sys.stderr.write(f"{line}\n")


@pytest.fixture(scope="module")
def run(interpreted_run: RunDir) -> RunDir:
    return interpreted_run


@pytest.fixture(params=["sqlite", "redis"])
def store(request, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path}/users.db"
        return
    with redis_server("--appendfsync", "always") as uri:
        yield uri


def test_replicas_that_die_under_load_cost_no_request_and_no_write(run, tmp_path, store) -> None:
    with two_replicas(run, tmp_path, store) as (url, process):
        wait_for_two(url, process)
        with Load(url) as load:
            for kill in range(KILLS):
                began, before = time.monotonic(), load.answers
                replicas(process)[kill % 2].kill()
                time.sleep(max(0.0, began + APART_S - time.monotonic()))
                wait_for_two(url, process)
                show(f"kill {kill + 1}: {time.monotonic() - began:.0f} s, {load.answers - before} writes acknowledged")
                assert load.answers > before
                assert load.failed == []
        assert load.failed == []
    check_kept(run, tmp_path, store, [load])


def test_nothing_acknowledged_is_lost_when_everything_dies(run, tmp_path, store) -> None:
    loads = []
    for kill in range(ALL_KILLS):
        with two_replicas(run, tmp_path, store) as (url, process):
            wait_for_two(url, process)
            with Load(url, name=f"{kill}-") as load:
                deadline = time.monotonic() + 120
                while min(len(load.users), len(load.items)) < 20 and time.monotonic() < deadline:
                    time.sleep(0.1)
                assert load.failed == []
                kill_all(process)
            loads.append(load)
            show(f"all killed {kill + 1}: {load.answers} writes acknowledged")
            assert min(len(load.users), len(load.items)) >= 20
    check_kept(run, tmp_path, store, loads)
