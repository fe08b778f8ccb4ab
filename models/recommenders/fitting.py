"""Fitting a next-item model: the loop of one worker. Knows nothing of Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from models.common.collectives import all_gather_rows, rank_and_size
from models.common.data_parallel import Strategy, backward, evaluating, gather_state, parallelise, restore, snapshot
from models.common.devices import DTYPES
from models.common.jagged import gather
from models.common.recommender import Queries, Recommender
from models.common.seeds import generator, seed_of
from models.evaluation.lists import CUT, ndcg, ranks, recall
from models.recommenders.settings import Course
from storage.errors import UserError

VALID, DROPOUT = 31, 32  # what is drawn
RECALL, NDCG = f"valid_recall@{CUT}", f"valid_ndcg@{CUT}"  # of a validation; the second one decides
LOOK_EVERY = 10  # steps between two chances to keep a state

State = dict[str, torch.Tensor]


class Subject(NamedTuple):
    """What is fitted, and from what."""

    learner: Any  # see `models.common.data_parallel.Learner`
    draw: Callable[[int], Sequence[Any]]  # this worker's batches of a step
    recommender: Callable[[Any], Recommender]  # of the learner
    losses: Callable[[Any], dict[str, float]] = lambda learner: {}  # held-out loss of each of its tasks
    patience_from: int = 0  # the step up to which validations do not count against it


class Keep(NamedTuple):
    """What a loop does with what it has reached."""

    report: Callable[[dict[str, Any], Callable[[], State]], None]  # metrics, and what takes the state on all workers
    improved: Callable[[Any, State], None]  # the learner and, on the first worker, its best tensors so far


def fit(
    course: Course,
    subject: Subject,
    queries: Queries,
    keep: Keep,
    *,
    seed: int,
    strategy: Strategy = "ddp",
    device: torch.device | str = "cpu",
    filter_seen: bool = True,
    state: State | None = None,
) -> None:
    """Train until validation gets no better.

    Args:
        course: of the fit.
        subject: the same on every worker, but for what it draws.
        queries: that validation asks, all workers together.
        keep: what to do with what was reached.
        seed: of all draws.
        filter_seen: whether lists leave out what a user has met.
        state: of a killed attempt, to go on from; is emptied.

    Raises:
        UserError: validation asks nothing, the loss is not a number, or the state is of another model.
    """
    require_queries(queries, "validation")
    module = parallelise(subject.learner, strategy, torch.device(device), DTYPES[course.precision])
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [part for part in trained if part.ndim > 1], "weight_decay": course.weight_decay},
            {"params": [part for part in trained if part.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=course.learning_rate,
        betas=(0.9, 0.98),
    )
    at = {"step": 0.0, "best": -1.0, "stale": 0.0, "total": 0.0, "seconds": 0.0}
    if state is not None:
        try:
            at = {name: float(state.pop(f"at.{name}")) for name in at}
            restore(module, optimizer, state)
            state.clear()  # is as large as the model and its moments
        except (LookupError, ValueError, RuntimeError) as error:
            raise UserError(
                "The state of the killed fit is of another model: run again with --from generate."
            ) from error
    started = time.perf_counter() - at["seconds"]

    def kept() -> State:
        numbers = {**at, "seconds": time.perf_counter() - started}
        exact = {f"at.{name}": torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
        return snapshot(module, optimizer) | exact

    if state is None:
        with evaluating(module) as learner:
            losses = subject.losses(learner)
        keep.report({"step": 0, **({"losses": losses} if losses else {})}, kept)
    module.train()
    while at["step"] < course.steps and at["stale"] < course.patience:
        step = int(at["step"])
        for group in optimizer.param_groups:
            group["lr"] = course.learning_rate * rate(step, course)
        torch.manual_seed(seed_of(DROPOUT, seed, step, rank_and_size()[0]))
        optimizer.zero_grad(set_to_none=True)
        at["total"] += backward(module, [_moved(batch, device) for batch in subject.draw(step)])
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        at["step"] += 1
        if at["step"] % course.validate_every and at["step"] < course.steps:
            if at["step"] % LOOK_EVERY == 0:
                keep.report({"step": int(at["step"])}, kept)
            continue
        if not math.isfinite(at["total"]):
            raise UserError("The loss is not a number: lower learning_rate under course.")
        with evaluating(module) as learner:
            found = validate(subject.recommender(learner), queries, filter_seen=filter_seen, device=device)
            losses = subject.losses(learner)
        steps = (step % course.validate_every) + 1
        metrics: dict[str, Any] = {"step": int(at["step"]), "train_loss": at["total"] / steps, **found}
        metrics |= {"losses": losses} if losses else {}
        better = found[NDCG] > at["best"]
        at |= {
            "best": max(at["best"], found[NDCG]),
            "stale": 0.0 if better or at["step"] <= subject.patience_from else at["stale"] + 1,
            "total": 0.0,
        }
        if better:
            tensors = gather_state(module)
            if not all(tensor.isfinite().all() for tensor in tensors.values()):
                raise UserError("The weights are not numbers: lower learning_rate under course.")
            keep.improved(subject.learner, tensors)
        keep.report({**metrics, "seconds": time.perf_counter() - started}, kept)


def require_queries(queries: Queries, split: str) -> None:
    """Look for what a split asks.

    Raises:
        UserError: nothing.
    """
    if not len(queries.target):
        raise UserError(
            f"No event of the {split} split asks for a next item: give a longer log or another split, or set "
            "filter_seen to false where users choose the same items again."
        )


def rate(step: int, course: Course) -> float:
    """Share of the learning rate at a step: linear warm-up, then half a cosine down to a tenth."""
    warm = min(1.0, (step + 1) / max(course.warmup, 1))
    return warm * (0.55 + 0.45 * math.cos(math.pi * step / course.steps))


def validate(
    recommender: Recommender, queries: Queries, *, filter_seen: bool, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """RECALL and NDCG of the queries, shared out among the workers, which tell by way of `device`."""
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
    """The report of the validation that was kept."""
    return max(curve, key=lambda point: point.get(NDCG, -1.0))


def sample(queries: Queries, count: int, *, seed: int) -> Queries:
    """So many of the queries, or all where there are fewer."""
    rows = torch.randperm(len(queries.target), generator=generator(VALID, seed))[:count].sort().values
    return Queries(
        queries.user[rows.numpy()], gather(queries.histories, rows), queries.target[rows], gather(queries.seen, rows)
    )


def _moved(batch: Any, device: torch.device | str) -> Any:
    return batch.to(device) if torch.is_tensor(batch) else type(batch)(*(part.to(device) for part in batch))
