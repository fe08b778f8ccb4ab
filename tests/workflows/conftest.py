from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.workflows.local_fits import local_fits


@pytest.fixture
def trials_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Independent fits run one after the other in this process, without Ray."""
    from workflows.distributed import trials

    def run_tasks(run: Callable[[str, int], None], jobs: Sequence[Any], *, at_once: int) -> Iterator[Any]:
        for job in jobs:
            run(*job)
            yield job

    monkeypatch.setattr(trials, "run_tasks", run_tasks)


@pytest.fixture
def fits_here() -> Iterator[None]:
    """The loop of a fit runs in this process; see `tests.workflows.local_fits`."""
    with local_fits():
        yield
