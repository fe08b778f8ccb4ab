"""Independent fits as Ray tasks: every variant from every seed, with a file of scores for each."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import ray
import ray.exceptions
import torch

from storage import files
from workflows.distributed.training import fixable_or

Trial = tuple[str, int]  # name of the variant, seed


def run_trials(
    fit: Callable[[str, int], Any],
    names: Sequence[str],
    seeds: Sequence[int],
    *,
    folder: str,
    at_once: int,
    progress: Callable[[int, int], None],
) -> dict[str, list[Any]]:
    """Fits every variant from every seed on the running Ray cluster and returns all scores.

    A trial writes its scores to a file of its own; those that an earlier attempt has written are not fitted again.
    After a failure no further trial starts, and those under way still write their scores.

    Args:
        fit: called as `fit(name, seed)` in a worker process with one CPU and one torch thread; returns a JSON
            value. A module-level function or a `partial` of one, whose arguments are sent to the cluster once.
        names: of the variants.
        seeds: from each of which every variant is fitted.
        folder: URI of the files.
        at_once: maximum number of trials under way.
        progress: called with the number of finished trials and of all, once per trial.

    Returns:
        By variant the scores of each seed, as read from the files.

    Raises:
        UserError: a trial raised one.
        TrainingError: a trial failed for another reason.
    """
    trials = [(name, seed) for seed in seeds for name in names]
    finished = [trial for trial in trials if files.exists(scores_uri(folder, *trial))]
    left = [trial for trial in trials if trial not in finished]
    run = partial(_run_trial, fit, folder)
    with closing(run_tasks(run, left, at_once=at_once)) as tasks:  # an interrupt cancels what is under way at once
        for count, _ in enumerate(chain(finished, tasks), 1):
            progress(count, len(trials))
    return {name: [files.read_json(scores_uri(folder, name, seed)) for seed in seeds] for name in names}


def scores_uri(folder: str, name: str, seed: int) -> str:
    """Returns the URI of a trial's scores."""
    return files.join(folder, f"{name}-{seed}.json")


def run_tasks(
    run: Callable[[str, int], None], trials: Sequence[Trial], *, at_once: int
) -> Generator[Trial, None, None]:
    """Calls `run(name, seed)` for every trial in a Ray task each, and yields the trials as they finish.

    Raises:
        UserError: as of `run_trials`, once the trials under way have finished; so does TrainingError.
    """
    shared, waiting, failures = ray.put(run), list(trials), list[Exception]()
    under_way: dict[Any, Trial] = {}
    try:
        while under_way or (waiting and not failures):
            while waiting and len(under_way) < at_once and not failures:
                trial = waiting.pop(0)
                under_way[_run_on_worker.remote(shared, *trial)] = trial
            (ended,), _ = ray.wait(list(under_way), num_returns=1)
            trial = under_way.pop(ended)
            try:
                ray.get(ended)
            except ray.exceptions.RayError as error:
                failed = f"The fit of {trial[0]!r} from seed {trial[1]} failed"
                failures.append(fixable_or(failed, getattr(error, "cause", None) or error))
            else:
                yield trial
    finally:
        for task in under_way:  # after an interrupt
            ray.cancel(task, force=True)
    if failures:
        raise failures[0]


def _run_trial(fit: Callable[[str, int], Any], folder: str, name: str, seed: int) -> None:
    files.write_json(scores_uri(folder, name, seed), fit(name, seed))


@ray.remote(num_cpus=1)
def _run_on_worker(run: Callable[[str, int], None], name: str, seed: int) -> None:
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries may draw from the global state
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    run(name, seed)
