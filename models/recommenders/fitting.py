"""Fits a recommender: the loop of one worker. Knows nothing of Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from models.common.collectives import all_gather_rows, rank_and_size
from models.common.data_parallel import (
    Strategy,
    backward,
    evaluating,
    gather_state,
    load_state,
    parallelise,
    restore,
    snapshot,
)
from models.common.devices import dtype_of
from models.common.jagged import gather
from models.common.recommender import FittedRecommender, Queries, Recommender
from models.common.seeds import seed_of
from models.common.settings import FitConfig
from models.evaluation.lists import CUT, ndcg, ranks, recall
from models.recommenders.averaging import BestStates
from storage.errors import UserError

DROPOUT = 32  # what is drawn
RECALL, NDCG = f"valid_recall@{CUT}", f"valid_ndcg@{CUT}"  # of a validation; the second one decides
REPORT_EVERY = 10  # steps between two reports, each a chance to keep a state

State = dict[str, torch.Tensor]


class TrainingTask(NamedTuple):
    """What is fitted, and from what."""

    learner: Any  # see `models.common.data_parallel.Learner`
    draw: Callable[[int], Sequence[Any]]  # this worker's batches of a step
    recommender: Callable[[Any], FittedRecommender]  # of the learner
    losses: Callable[[Any], dict[str, float]] = lambda learner: {}  # held-out loss of each of its tasks
    patience_from: int = 0  # the step up to which validations do not count against it
    limit: Callable[[], None] = lambda: None  # keeps weights within their bounds, after every step
    warm: bool = False  # whether the learner has the weights of an earlier fit, which stand where nothing is better


class Callbacks(NamedTuple):
    """What a loop calls with what it has reached."""

    report: Callable[[dict[str, Any], Callable[[], State]], None]  # metrics, and what takes the state on all workers
    improved: Callable[[Any, State], None]  # the learner and, on the first worker, its best tensors so far


def fit(
    config: FitConfig,
    task: TrainingTask,
    queries: Queries,
    callbacks: Callbacks,
    *,
    seed: int,
    strategy: Strategy = "ddp",
    device: torch.device | str = "cpu",
    filter_seen: bool = True,
    state: State | None = None,
) -> None:
    """Trains until validation gets no better, and tries the average of the best states where the settings ask for it.

    A fit with `stop_at` is validated there alone, so that its last state is the best one.

    The average is one more report, with the steps of its states as `averaged`; it is the last improvement where it is
    better on validation than each of them.

    Args:
        config: of the fit.
        task: the same on every worker, but for what it draws.
        queries: of validation, for all workers together.
        callbacks: called with what was reached.
        seed: of all draws.
        filter_seen: whether lists leave out what a user has met.
        state: of a killed attempt, to resume from; is emptied.

    Raises:
        UserError: validation has no query, the loss is not a number, or the state is of another model.
    """
    require_queries(queries, "validation")
    device = torch.device(device)
    module = parallelise(task.learner, strategy, device, dtype_of(config.precision, device))
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [part for part in trained if part.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [part for part in trained if part.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
    )
    best_states = BestStates(config.averaged)
    at = {"step": 0.0, "best": -1.0, "stale": 0.0, "total": 0.0, "seconds": 0.0}
    if state is not None:
        try:
            at = {name: float(state.pop(f"at.{name}")) for name in at}
            best_states.restore(state)
            restore(module, optimizer, state)
            state.clear()  # is as large as the model and its moments
        except (LookupError, ValueError, RuntimeError) as error:
            raise UserError(
                "The state of the killed fit is of another model: run again with --from generate."
            ) from error
    started, every = time.perf_counter() - at["seconds"], config.stop_at or config.validate_every

    def resumable() -> State:
        """Returns all that a killed attempt resumes from; every worker calls it."""
        numbers = {**at, "seconds": time.perf_counter() - started}
        exact = {f"at.{name}": torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
        return snapshot(module, optimizer) | exact | best_states.tensors()

    def validated() -> tuple[dict[str, float], dict[str, float]]:
        """Returns the scores of the weights as they are, and the held-out losses of the tasks."""
        with evaluating(module) as learner:
            found = validate(task.recommender(learner), queries, filter_seen=filter_seen, device=device)
            return found, task.losses(learner)

    if state is None:
        with evaluating(module) as learner:
            losses = task.losses(learner)
        begun: dict[str, Any] = {"step": 0, **({"losses": losses} if losses else {})}
        if task.warm:
            begun |= validated()[0]
            at["best"], tensors = begun[NDCG], gather_state(module)
            callbacks.improved(task.learner, tensors)
            if best_states.admits(begun[NDCG]):
                best_states.add(0, begun[NDCG], tensors)
            begun["seconds"] = time.perf_counter() - started
        callbacks.report(begun, resumable)
    module.train()
    while at["step"] < config.last_step and at["stale"] < config.patience:
        step = int(at["step"])
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * rate(step, config)
        torch.manual_seed(seed_of(DROPOUT, seed, step, rank_and_size()[0]))
        optimizer.zero_grad(set_to_none=True)
        at["total"] += backward(module, [_moved(batch, device) for batch in task.draw(step)])
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        task.limit()
        at["step"] += 1
        if at["step"] % every and at["step"] < config.last_step:
            if at["step"] % REPORT_EVERY == 0:
                callbacks.report({"step": int(at["step"])}, resumable)
            continue
        if not math.isfinite(at["total"]):
            raise UserError("The loss is not a number: lower learning_rate under fit.")
        found, losses = validated()
        steps = (step % every) + 1
        metrics: dict[str, Any] = {"step": int(at["step"]), "train_loss": at["total"] / steps, **found}
        metrics |= {"losses": losses} if losses else {}
        better, admitted = found[NDCG] > at["best"], best_states.admits(found[NDCG])
        at |= {
            "best": max(at["best"], found[NDCG]),
            "stale": 0.0 if better or at["step"] <= task.patience_from else at["stale"] + 1,
            "total": 0.0,
        }
        if better or admitted:
            tensors = gather_state(module)
            if not all(tensor.isfinite().all() for tensor in tensors.values()):
                raise UserError("The weights are not numbers: lower learning_rate under fit.")
        if better:
            callbacks.improved(task.learner, tensors)
        if admitted:
            best_states.add(int(at["step"]), found[NDCG], tensors)
        callbacks.report({**metrics, "seconds": time.perf_counter() - started}, resumable)
    if len(steps_of_mean := best_states.steps) > 1:
        tensors = best_states.mean()
        best_states.clear()  # so that a fit that is killed behind its last report has nothing left to do
        load_state(module, tensors)
        found, _ = validated()
        if found[NDCG] > at["best"]:
            callbacks.improved(task.learner, tensors)
        metrics = {"step": int(at["step"]), "averaged": steps_of_mean, **found}
        callbacks.report({**metrics, "seconds": time.perf_counter() - started}, resumable)


def require_queries(queries: Queries, split: str) -> None:
    """Makes sure that a split asks for something.

    Raises:
        UserError: it has no query.
    """
    if not len(queries.target):
        raise UserError(
            f"No event of the {split} split asks for a next item: give a longer log or another split, or set "
            "filter_seen to false where users choose the same items again."
        )


def rate(step: int, config: FitConfig) -> float:
    """Returns the share of the learning rate at a step: linear warm-up, then half a cosine down to a tenth."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    return 0.55 + 0.45 * math.cos(math.pi * (step - config.warmup) / max(config.steps - config.warmup, 1))


def validate(
    recommender: Recommender, queries: Queries, *, filter_seen: bool, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Return RECALL and NDCG of the queries, which are shared out among the workers; `device` is for their messages."""
    (rank, workers), count = rank_and_size(), len(queries.target)
    places = torch.arange(rank, -(-count // workers) * workers, workers)
    mine = places % count  # equally many on every worker, as FSDP needs; what is asked twice counts once
    banned = gather(queries.seen, mine) if filter_seen else None
    items = recommender.recommend(gather(queries.histories, mine), k=CUT, banned=banned).items
    places_in_list = ranks(items.numpy(), queries.target[mine].numpy())
    gain = torch.from_numpy(np.stack([recall(places_in_list, CUT), ndcg(places_in_list, CUT)], axis=1)).float()
    means = all_gather_rows(gain[places < count].to(device)).mean(0).tolist()
    return dict(zip((RECALL, NDCG), means, strict=True))


def best_of(curve: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the report of the best validation."""
    return max(curve, key=lambda point: point.get(NDCG, -1.0))


def _moved(batch: Any, device: torch.device | str) -> Any:
    return batch.to(device) if torch.is_tensor(batch) else type(batch)(*(part.to(device) for part in batch))
