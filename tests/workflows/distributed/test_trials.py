"""Independent fits on Ray: how many at once, what a later attempt finds, and what a failure leaves."""

from __future__ import annotations

import errno
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from storage import files
from storage.errors import UserError
from workflows.distributed import trials
from workflows.distributed.training import TrainingError

pytestmark = pytest.mark.usefixtures("ray_cluster")

ERRORS: dict[str, Exception] = {
    "user": UserError("Give a longer log."),
    "room": OSError(errno.ENOSPC, "no room"),
    "bug": ValueError("a bug"),
}


def fit(seconds: float, name: str, seed: int) -> dict[str, Any]:
    """A fit that takes its time, or fails at once."""
    if name in ERRORS:
        raise ERRORS[name]
    start = time.time()
    time.sleep(seconds)
    return {"name": name, "seed": seed, "threads": torch.get_num_threads(), "span": [start, time.time()]}


def run(folder: Path, names: list[str], seeds: list[int], done: list[Any], *, seconds: float = 0.0) -> dict[str, Any]:
    return trials.run_trials(
        partial(fit, seconds),
        names,
        seeds,
        folder=str(folder),
        at_once=2,
        progress=lambda *each: done.append(each),
    )


def test_every_variant_is_fitted_from_every_seed_two_at_once_on_one_thread_each(tmp_path: Path) -> None:
    done: list[Any] = []
    found = run(tmp_path, ["a", "b"], [3, 4], done, seconds=0.3)
    assert {
        name: [(one["name"], one["seed"], one["threads"]) for one in by_seed] for name, by_seed in found.items()
    } == {name: [(name, 3, 1), (name, 4, 1)] for name in ("a", "b")}
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    spans = [one["span"] for by_seed in found.values() for one in by_seed]
    assert max(sum(start <= at < end for start, end in spans) for at, _ in spans) <= 2


def test_what_is_written_is_not_fitted_again(tmp_path: Path) -> None:
    first = run(tmp_path, ["a"], [0, 1], [])
    done: list[Any] = []
    again = run(tmp_path, ["a", "b"], [0, 1], done)
    assert again["a"] == first["a"]
    assert len(again["b"]) == 2
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("user", UserError, "^Give a longer log.$"),
        ("room", OSError, "no room"),
        ("bug", TrainingError, "^The fit of 'bug' from seed 0 failed: ValueError: a bug$"),
    ],
)
def test_a_failure_has_one_cause_and_leaves_the_scores_of_others(
    tmp_path: Path, name: str, kind: type[Exception], says: str
) -> None:
    done: list[Any] = []
    with pytest.raises(kind, match=says):
        run(tmp_path, ["a", name, *(f"later {number}" for number in range(20))], [0], done, seconds=0.1)
    written = [path.name for path in tmp_path.iterdir()]
    assert files.read_json(str(tmp_path / "a-0.json"))["name"] == "a"
    assert len(written) == len(done) < 20  # none was started after the failure
    assert not any(name in file for file in written)
