from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.workflows.local_fits import local_fits


@pytest.fixture
def trials_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Independent fits run one after the other in this process, without Ray."""
    from workflows.distributed import tasks

    monkeypatch.setattr(tasks, "_run_on_ray", lambda call, keys, at_once, failed: tasks._run_here(call, keys))


@pytest.fixture
def fits_here() -> Iterator[None]:
    """The loop of a fit runs in this process; see `tests.workflows.local_fits`."""
    with local_fits():
        yield
