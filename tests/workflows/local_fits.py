"""Fits in the process of the test: Ray Train's local mode, for tests that need one worker."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def local_fits() -> Iterator[None]:
    """Run the loops of fits in this process for the length of a block.

    Ray Train's local mode starts no process and keeps no checkpoint. So a loop's checkpoints are written here, to the
    place in the run where Ray Train writes them, and a fit of the same name resumes from the last one. Progress is
    reported once, at the end.
    """
    import ray.train
    import torch
    import torch.distributed as dist

    from workflows.distributed import training

    threads = torch.get_num_threads()
    fit, scaling = training.fit, ray.train.ScalingConfig
    states: list[Path] = []  # that of the fit that runs

    def one_worker(*, num_workers: int, **_: Any) -> ray.train.ScalingConfig:
        assert num_workers == 1
        return scaling(num_workers=0)

    def fit_here(*arguments: Any, run: Any, name: str, progress: Any, **settings: Any) -> list[dict[str, Any]]:
        states[:] = [Path(run.uri("checkpoints", name, "state"))]
        try:
            reports = fit(*arguments, run=run, name=name, **settings)
        finally:
            if dist.is_initialized():  # after a failure
                dist.destroy_process_group()
        progress(reports[-1])
        return reports

    def report(metrics: dict[str, Any], checkpoint: ray.train.Checkpoint | None = None) -> None:
        if checkpoint is not None:
            shutil.rmtree(states[0], ignore_errors=True)
            shutil.copytree(checkpoint.path, states[0])

    def last() -> ray.train.Checkpoint | None:
        return ray.train.Checkpoint.from_directory(states[0]) if states[0].exists() else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)  # local mode would take what is there
        patch.setattr(ray.train, "ScalingConfig", one_worker)
        patch.setattr(ray.train, "report", report)
        patch.setattr(ray.train, "get_checkpoint", last)
        patch.setattr(training, "fit", fit_here)
        one = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
        for name, value in {**one, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}.items():  # 0: a port that is free
            patch.setenv(name, str(value))
        yield
    torch.set_num_threads(threads)
