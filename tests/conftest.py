from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.s3 import Server

REPOSITORY = Path(__file__).parent.parent
settings.register_profile("tesserec", deadline=None)  # a shared machine's pauses are no property of the code
settings.load_profile("tesserec")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest files come first: one of them alone at the end would leave a core idle."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for all tests of a session: eight logical CPUs, real parallelism bounded by the pools."""
    import ray

    from workflows.distributed.cluster import local_settings

    os.environ.update({name: value for name, value in local_settings(8).items() if name not in os.environ})
    ray.shutdown()  # one that a test before left, if its end came in the middle of a command
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=1 << 30,
        runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()


@pytest.fixture
def tesserec(monkeypatch, capfd):
    """Call the command in this process; return (status, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        from workflows import cli

        monkeypatch.setattr(sys, "argv", ["tesserec", *arguments])
        kept = dict(os.environ)  # what a command sets is its own: the next Ray of this process would go by it
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            os.environ.clear()
            os.environ.update(kept)
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture(scope="session")
def s3_session() -> Iterator[Server]:
    """An S3 server for all tests of a session."""
    from tests.s3 import s3_server

    with s3_server() as server:
        yield server


@pytest.fixture
def s3(s3_session: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """That server, in whose environment this process and its children are; none of its faults outlive a test."""
    for name, value in s3_session.environment.items():
        monkeypatch.setenv(name, value)
    yield s3_session
    s3_session.fail(503, times=0)
    s3_session.slow(0)


@pytest.fixture(scope="session")
def redis_uri() -> Iterator[str]:
    """The address of a Redis server for all tests of a session."""
    from tests.stores import redis_server

    with redis_server() as uri:
        yield uri


@pytest.fixture(params=["sqlite", "redis"])
def store_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty store, of either kind."""
    from tests.stores import emptied

    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'store.db'}"
    return emptied(request.getfixturevalue("redis_uri"))
