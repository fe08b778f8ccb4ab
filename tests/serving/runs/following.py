"""Services that follow what is to be served, and rolls between runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.pipeline import Pipeline
from serving.runs import rolling
from serving.runs.opening import open_run
from serving.runs.side_by_side import Runs
from serving.stores.base import LoadableStore
from serving.stores.opening import open_store
from storage.run import RunDir
from workflows.load import load_users

USERS = [f"user {n}" for n in range(30)]


def store_at(uri: str, run: RunDir) -> LoadableStore:
    load_users(run.root, uri, 100, lambda done, total: None)
    return open_store(uri)


@contextmanager
def replicas(uri: str, run: RunDir, count: int = 2, opened: Callable | None = None) -> Iterator[list[Runs]]:
    """Services that follow what is to be served."""

    def opening(root: str) -> Pipeline:
        return (opened or open_run)(root, open_store(uri))

    found = [Runs(open_store(uri), run.root, opening) for _ in range(count)]
    for each in found:
        each.start()
    try:
        yield found
    finally:
        for each in found:
            each.close()


def roll(run: RunDir, uri: str, **how) -> list[str]:
    told: list[str] = []

    def fill() -> None:
        load_users(run.root, uri, 100, lambda done, total: None)

    rolling.roll(run.root, uri, fill, told.append, **how)
    return told


def listed(answers) -> list[list[str]]:
    return [[item.item_id for item in answer.items] for answer in answers]
