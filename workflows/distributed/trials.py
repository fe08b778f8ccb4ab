"""Independent fits as Ray tasks: every variant from every seed, with a file of scores for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from workflows.distributed.tasks import Key, run_tasks


def run_trials(
    fit: Callable[[str, int], Any],
    names: Sequence[str],
    seeds: Sequence[int],
    *,
    folder: str,
    at_once: int,
    progress: Callable[[int, int], None],
) -> dict[str, list[Any]]:
    """Fits every variant from every seed on the running Ray cluster and returns all scores; see `tasks.run_tasks`.

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
    trials: list[Key] = [(name, seed) for seed in seeds for name in names]
    scores = run_tasks(partial(_seeded, fit), trials, folder=folder, at_once=at_once, failed=_failed, progress=progress)
    found = dict(zip(trials, scores, strict=True))
    return {name: [found[name, seed] for seed in seeds] for name in names}


def _failed(trial: Key) -> str:
    return f"The fit of {trial[0]!r} from seed {trial[1]} failed"


def _seeded(fit: Callable[[str, int], Any], name: str, seed: int) -> Any:
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries may draw from the global state
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    return fit(name, seed)
