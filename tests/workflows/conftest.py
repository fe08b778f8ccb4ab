from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest


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
def fits_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray Train's local mode: the loop of a fit runs in this process, for tests that ask nothing of workers.

    It keeps no checkpoint then, and tells its progress at the end alone.
    """
    import ray.train
    import torch
    import torch.distributed as dist

    from workflows.distributed import training

    threads = torch.get_num_threads()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # local mode would take what is there
    fit, scaling = training.fit, ray.train.ScalingConfig

    def one_worker(*, num_workers: int, **_: Any) -> ray.train.ScalingConfig:
        assert num_workers == 1
        return scaling(num_workers=0)

    def fit_here(*arguments: Any, progress: Any, **settings: Any) -> list[dict[str, Any]]:
        reports = fit(*arguments, **settings)
        progress(reports[-1])
        return reports

    monkeypatch.setattr(ray.train, "ScalingConfig", one_worker)
    monkeypatch.setattr(training, "fit", fit_here)
    one = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
    for name, value in {**one, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}.items():  # 0: a port that is free
        monkeypatch.setenv(name, str(value))
    yield
    torch.set_num_threads(threads)
    if dist.is_initialized():  # after a failure
        dist.destroy_process_group()
