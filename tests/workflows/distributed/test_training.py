from __future__ import annotations

import errno
import os
import random
import signal
import sys
import tempfile
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
from workflows.distributed import training
from workflows.distributed.pools import Workers

pytestmark = pytest.mark.long


def count(config: dict[str, Any]) -> None:
    """Draw and report six steps. The first attempt fails on rank 1 after the third; the next adds up all rows."""
    sys.stdout.write("noise that belongs to the worker\n")
    mine = torch.tensor([torch.rand(()).item(), np.random.rand(), random.random()], dtype=torch.float64)  # noqa: NPY002
    drawn = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(drawn, mine)
    state = training.restored(training.load_tensors)
    first = 0 if state is None else int(state["step"])
    rows = torch.zeros(1, dtype=torch.int64)
    if state is not None:
        rows += sum(len(batch["n"]) for batch in ray.train.get_dataset_shard("rows").iter_batches())
        dist.all_reduce(rows)
    told = {"first": first, "rows": int(rows), "drawn": torch.stack(drawn).tolist(), "threads": torch.get_num_threads()}
    for step in range(first + 1, 7):
        save = partial(training.save_tensors, lambda step=step: {"step": torch.tensor(step)})
        training.report({"step": step, **told}, save, every_s=0.0)
        if step == 3 and state is None and dist.get_rank() == 1:
            raise UserError("Lower the batch size.")
    dist.barrier()


class Attempts:
    """A fit on two workers that ends at a mistake, and the same once more."""

    def __init__(self, root: Path) -> None:
        self.root, self.seen = root, list[int]()

        def fit(**datasets: ray.data.Dataset) -> list[dict[str, Any]]:
            return training.fit(
                count,
                {"seed": 7},
                workers=Workers(2),
                run=RunDir(str(root / "run")),
                name="count/f1",
                datasets=datasets,
                progress=lambda metrics: self.seen.append(metrics["step"]),
            )

        with pytest.raises(UserError) as failed:
            fit()
        self.seen.clear()
        rows = ray.data.from_items([{"n": n} for n in range(7)], override_num_blocks=1)  # all for one rank
        self.failed, self.found = str(failed.value), fit(rows=rows)


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Attempts:
    handler = signal.getsignal(signal.SIGINT)
    with tempfile.TemporaryFile() as said:
        stdout = os.dup(1)
        os.dup2(said.fileno(), 1)  # which the processes of Ray would inherit
        try:
            found = Attempts(tmp_path_factory.mktemp("fits"))
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
        said.seek(0)
        assert said.read() == b""
    assert signal.getsignal(signal.SIGINT) is handler
    return found


def test_reports_come_back_and_every_rank_has_its_own_seed(attempts: Attempts) -> None:
    assert attempts.seen[-1] == 6  # what came between may fall between two looks
    assert attempts.seen == sorted(attempts.seen)
    assert [path.name for path in (attempts.root / "run" / "checkpoints").iterdir()] == ["count"]
    found = attempts.found[-1]
    assert found["threads"] == 1
    for rank, drawn in enumerate(found["drawn"]):
        torch.manual_seed(7 + rank)
        expected = [torch.rand(()).item(), np.random.RandomState(7 + rank).rand(), random.Random(7 + rank).random()]
        assert drawn == expected


def test_a_failing_rank_ends_the_fit_with_its_user_error_and_the_next_attempt_goes_on(attempts: Attempts) -> None:
    assert attempts.failed == "Lower the batch size."
    first = attempts.found[-1]["first"]
    assert first in (1, 2, 3)  # the last state may have been on its way
    assert [metrics["step"] for metrics in attempts.found] == [1, 2, 3, 4, 5, 6]
    assert [metrics["first"] for metrics in attempts.found] == [0] * first + [first] * (6 - first)
    assert attempts.found[-1]["rows"] == 7


def mortal(config: dict[str, Any]) -> None:
    """Reports six steps; the process dies in the fourth, as often as the settings say."""
    state = training.restored(training.load_tensors)
    first = 0 if state is None else int(state["step"])
    for step in range(first + 1, 7):
        deaths = len(list(Path(config["deaths"]).iterdir()))
        if step == 4 and deaths < config["times"]:
            (Path(config["deaths"]) / str(deaths)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        save = partial(training.save_tensors, lambda step=step: {"step": torch.tensor(step)})
        training.report({"step": step, "first": first}, save, every_s=0.0)


def test_a_fit_whose_worker_dies_goes_on_by_itself_but_not_for_ever(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deaths").mkdir()

    def fit(times: int) -> list[dict[str, Any]]:
        config = {"seed": 7, "deaths": str(tmp_path / "deaths"), "times": times}
        return training.fit(mortal, config, workers=Workers(1), run=RunDir(str(tmp_path / "run")), name="mortal/f")

    monkeypatch.setattr(training, "MOST_RESTARTS", 0)
    with pytest.raises(training.TrainingError, match="Training 'mortal/f' failed on worker 0"):
        fit(times=1)
    monkeypatch.setattr(training, "MOST_RESTARTS", 1)
    found = fit(times=2)
    assert len(list((tmp_path / "deaths").iterdir())) == 2
    assert [metrics["step"] for metrics in found] == [1, 2, 3, 4, 5, 6]
    assert found[-1]["first"] in (1, 2, 3)


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
