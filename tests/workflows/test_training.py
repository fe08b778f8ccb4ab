from __future__ import annotations

import errno
import random
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.data
import ray.train
import torch
import torch.distributed as dist

from storage.errors import UserError
from storage.run import RunDir
from workflows import training

pytestmark = pytest.mark.long


def draw(config: dict[str, Any]) -> None:
    """Every rank draws once; all draws are gathered on all ranks."""
    sys.stdout.write("noise that belongs to the worker\n")
    mine = torch.tensor([torch.rand(()).item(), np.random.rand(), random.random()], dtype=torch.float64)  # noqa: NPY002
    drawn = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(drawn, mine)
    for step in range(3):
        training.report({"step": step, "drawn": torch.stack(drawn).tolist(), "threads": torch.get_num_threads()})


def count(config: dict[str, Any]) -> None:
    """Add up the rows of all ranks and six steps; fails on rank 1 after the third, in the first attempt."""
    state = training.restored(training.load_tensors)
    first = 0 if state is None else int(state["step"])
    rows = torch.tensor([sum(len(batch["n"]) for batch in ray.train.get_dataset_shard("rows").iter_batches())])
    dist.all_reduce(rows)
    for step in range(first + 1, 7):
        metrics = {"step": step, "first": first, "rows": int(rows)}
        save = partial(training.save_tensors, lambda step=step: {"step": torch.tensor(step)})
        training.report(metrics, save, every_s=0.0)
        if step == 3 and state is None and dist.get_rank() == 1:
            raise UserError("Lower the batch size.")
    dist.barrier()


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(str(tmp_path / "run"))


@pytest.mark.usefixtures("ray_cluster")
def test_reports_come_back_and_every_rank_has_its_own_seed(
    run: RunDir, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    seen: list[int] = []
    fit = training.fit(
        draw, {"seed": 7}, workers=2, run=run, name="draw/f1", progress=lambda metrics: seen.append(metrics["step"])
    )
    assert seen[-1] == 2  # what came between may fall between two looks
    assert seen == sorted(seen)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["draw"]
    assert [metrics["step"] for metrics in fit.history] == [0, 1, 2]
    assert fit.metrics == fit.history[-1]
    assert fit.metrics["threads"] == 1
    for rank, drawn in enumerate(fit.metrics["drawn"]):
        torch.manual_seed(7 + rank)
        expected = [torch.rand(()).item(), np.random.RandomState(7 + rank).rand(), random.Random(7 + rank).random()]
        assert drawn == expected
    assert capfd.readouterr().out == ""
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.usefixtures("ray_cluster")
def test_a_failing_rank_ends_the_fit_with_its_user_error_and_the_next_attempt_goes_on(run: RunDir) -> None:
    def fit() -> training.Fit:
        rows = {"rows": ray.data.from_items([{"n": n} for n in range(7)], override_num_blocks=1)}  # all for one rank
        return training.fit(count, {"seed": 0}, workers=2, run=run, name="count/f1", datasets=rows)

    with pytest.raises(UserError, match=r"^Lower the batch size\.$"):
        fit()
    found = fit()
    first = found.metrics["first"]
    assert first in (1, 2, 3)  # the last state may have been on its way
    assert [metrics["step"] for metrics in found.history] == [1, 2, 3, 4, 5, 6]
    assert [metrics["first"] for metrics in found.history] == [0] * first + [first] * (6 - first)
    assert found.metrics["rows"] == 7


def test_other_failures_name_the_fit_and_the_rank() -> None:
    failures: dict[int, Exception] = {3: ConnectionError("peer gone"), 1: ValueError("row 9 is odd")}
    error = training.one_cause("rank", failures)
    assert isinstance(error, training.TrainingError)
    assert str(error) == "Training 'rank' failed on worker 1: ValueError: row 9 is odd"


def test_a_full_disk_is_told_as_it_is_and_a_lost_peer_is_not() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/runs/checkpoint")
    assert training.one_cause("rank", {0: ConnectionError("peer gone"), 1: full}) is full
    assert isinstance(training.one_cause("rank", {0: ConnectionError("peer gone")}), training.TrainingError)


def test_a_damaged_state_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = ray.train.Checkpoint.from_directory(tmp_path)
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: checkpoint)
    (tmp_path / training.HISTORY).write_text("[]")
    (tmp_path / training.STATE).write_bytes(b"half")
    with pytest.raises(UserError, match="is damaged, run again with --from"):
        training.restored(training.load_tensors)
    (tmp_path / training.HISTORY).write_text("[")
    with pytest.raises(UserError, match="is damaged, run again with --from"):
        training.restored(training.load_tensors)
