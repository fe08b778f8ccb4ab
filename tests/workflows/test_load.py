"""`tesserec load`: whole, killed and resumed, again, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from operators.features.tokens import NULL_ID
from serving.ranking import trained_by
from serving.stores.base import User
from serving.stores.opening import open_store
from storage import files
from storage.hashing import hash_ids
from storage.manifest import Manifest, StageEntry, write_manifest
from storage.run import RunDir
from tests.conftest import REPOSITORY
from tests.logs import read_log_table
from tests.stores import holds
from tests.workflows.stages.test_ranking import write_run
from workflows.engine.registry import stage
from workflows.stages.features import stage as features

PARTITIONS = 3
Tesserec = Callable[..., tuple[int, str, str]]
KILLED = """
import os, signal, sys
import workflows.load as load
opened, left = load.open_store, [int(sys.argv[3])]
def open_store(uri, create):
    store = opened(uri, create=create)
    write = store.write
    def dying(*batch, **more):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        write(*batch, **more)
    store.write = dying
    return store
load.open_store = open_store
load.load_users(sys.argv[1], sys.argv[2], 5, lambda done, total: None)
"""


def finish(run: RunDir, fingerprint: str = "f1", state: str = "complete") -> None:
    entry = StageEntry(state=state, fingerprint=fingerprint)  # type: ignore[arg-type]
    write_manifest(run.root, Manifest(name="tiny", stages={"features": entry}))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    context = write_run(tmp_path_factory.mktemp("run"), partitions=PARTITIONS)
    stage("features").run(features.Config(history=5), context)
    return context.run


@pytest.fixture(autouse=True)
def _finished(run: RunDir) -> None:
    finish(run)


@pytest.fixture(scope="module")
def users(run: RunDir) -> dict[str, User]:
    """What the log says of every user."""
    finish(run)
    log = pl.DataFrame(read_log_table(run)).sort("timestamp", maintain_order=True)
    known = dict(pl.DataFrame(run.read_table("features", "users", columns=["user_id", "user"])).iter_rows())
    found = {}
    for (user_id,), events in log.group_by("user_id", maintain_order=True):
        liked = events.filter(pl.col("label") > 0)
        times = liked["timestamp"].dt.epoch("us").to_numpy().astype(np.int64)
        found[str(user_id)] = User(
            hash_ids(liked["item_id"].to_list()),
            times,
            len(events),
            (trained_by(run),) * (known[user_id] != NULL_ID),
            np.empty(0, np.int64),
        )
    assert {user.trained for user in found.values()} == {(trained_by(run),), ()}
    return found


def stored(uri: str, users: dict[str, User]) -> bool:
    store = open_store(uri)
    try:
        return holds(store, users)
    finally:
        store.close()


def test_a_store_is_filled(run: RunDir, users: dict[str, User], store_uri: str, tesserec: Tesserec) -> None:
    status, _, told = tesserec("load", run.root, "--store", store_uri)
    assert status == 0, told
    assert f"load: {len(users)} users in " in told
    assert " rows/s" in told
    assert "skipped" not in told
    assert stored(store_uri, users)
    status, _, told = tesserec("load", run.root, "--store", store_uri)
    assert status == 0, told
    assert "load: 3 of 3 partitions are in the store already, and are skipped" in told
    assert "load: 0 users in " in told
    assert stored(store_uri, users)


def test_a_load_that_is_killed_goes_on(run: RunDir, users: dict[str, User], store_uri: str, tesserec: Tesserec) -> None:
    before = 0
    for batches in (3, 12):
        command = [sys.executable, "-c", KILLED, run.root, store_uri, str(batches)]
        assert subprocess.run(command, cwd=REPOSITORY).returncode == -9
        store = open_store(store_uri)
        found, there = store.count(), store.begin_load("f1")
        store.close()
        assert before < found < len(users)
        before = found
    assert 0 < len(there) < PARTITIONS
    status, _, told = tesserec("load", run.root, "--store", store_uri, "--batch", "5")
    assert status == 0, told
    assert f"load: {len(there)} of 3 partitions" in told
    assert stored(store_uri, users)


def test_another_run_comes_over_the_first(
    run: RunDir, users: dict[str, User], tmp_path: Path, tesserec: Tesserec
) -> None:
    uri = f"sqlite:{tmp_path}/store.db"
    numbers = []
    for fingerprint in ("f1", "f2", "f1"):
        finish(run, fingerprint)
        numbers.append(trained_by(run))
        status, _, told = tesserec("load", run.root, "--store", uri)
        assert status == 0, told
        assert f"load: {len(users)} users" in told
    both = {name: user._replace(trained=tuple(numbers[:2]) if user.trained else ()) for name, user in users.items()}
    assert stored(uri, both)


def test_what_cannot_be_loaded(run: RunDir, tmp_path: Path, tesserec: Tesserec) -> None:
    (tmp_path / "file").write_text("")
    good = f"sqlite:{tmp_path}/store.db"
    for arguments, sentence in (
        ((f"{tmp_path}/none", "--store", good), "There is no run at"),
        ((run.root, "--store", "users.db"), "'users.db' is no store: write sqlite:PATH"),
        ((run.root, "--store", f"sqlite:{tmp_path}/file/x"), "cannot be used"),
        ((run.root, "--store", good, "--batch", "0"), "--batch"),
    ):
        status, _, told = tesserec("load", *arguments)
        assert status == 2
        assert sentence in told
        assert len(told.splitlines()) == 1, told
    finish(run, state="interrupted")
    status, _, told = tesserec("load", run.root, "--store", good)
    assert status == 2
    assert "cannot be loaded yet, its stage features is interrupted" in told
    assert not (tmp_path / "store.db").exists()


def test_features_of_an_earlier_version(run: RunDir, tmp_path: Path, tesserec: Tesserec) -> None:
    older = RunDir(str(tmp_path / "older"))
    finish(older)
    files.copy(run.uri("embeddings"), older.uri("embeddings"))
    table = run.read_table("features", "users")
    older.write_table(table.drop_columns(["seen_time", "events"]), "features", "users")
    status, _, told = tesserec("load", older.root, "--store", f"sqlite:{tmp_path}/store.db")
    assert status == 2
    assert "has no column 'events'" in told
    assert f"run again with --run-dir {older.root} --from features" in told
