"""Fitting a ranker: the loop of one worker. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial, reduce
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from models.common.collectives import all_gather_rows, all_reduce_sum, rank_and_size
from models.common.seeds import generator, seed_of
from models.evaluation.clicks import AucTally, total_loss
from models.ranking.config import RankerConfig
from models.ranking.ranker import Kept, Ranker, RankerInputs, merged, moments
from models.ranking.schedule import Parts, epoch_steps
from models.ranking.settings import RankerSettings
from models.ranking.training import Trainer
from storage.errors import UserError

BLOCK = 1 << 16  # items whose vectors are copied at once
LOOK_EVERY = 50  # steps between two chances to keep a state
MASK, DROPOUT = 2, 3  # what is drawn; see `models.ranking.schedule` for other draws
EPOCH_START = {"step": 0, "total": 0.0, "seconds": 0.0}


class Items(Protocol):
    """The item side of a catalogue; see `operators.features.ranker_inputs.ItemFeatures`."""

    def __len__(self) -> int: ...

    def vectors(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the vectors that the ranker reads of items, float32 [B, content_dim]."""


class Examples(Protocol):
    """M rows to learn from or to validate on; see `operators.features.ranker_inputs.Examples`."""

    rows: torch.Tensor  # item rows, int64 [M]
    dense: torch.Tensor  # float32 [M, n]
    label: torch.Tensor  # float32 [M]

    def __len__(self) -> int: ...

    def batch(self, items: Any, at: torch.Tensor, keep: Kept | None = None, total: float | None = None) -> RankerInputs:
        """Returns the ranker's input for the rows at positions int64 [B]."""


class Data(NamedTuple):
    """What a ranker is fitted on."""

    config: RankerConfig
    items: Items
    train: Parts[Examples]
    valid: Parts[Examples]


class Keep(NamedTuple):
    """What a loop does with what it has reached."""

    report: Callable[[dict[str, Any], Callable[[str], None]], None]  # metrics, and what saves the state to a folder
    improved: Callable[[Trainer], None]  # the best epoch so far is in the trainer


def make_ranker(data: Data, device: torch.device | str = "cpu") -> Ranker:
    """A ranker that knows the statistics of the training rows, and of the items in them.

    Every worker of a process group has to call it, and reads a share of the partitions; `device` is for their messages.
    """
    ranker, (rank, workers) = Ranker(data.config), rank_and_size()
    items, features = len(data.items), len(data.config.dense)
    seen, liked = torch.zeros(items, device=device), torch.zeros(1, dtype=torch.float64, device=device)
    dense = [torch.empty(0, 3, features, dtype=torch.float64)]
    for number in range(rank, len(data.train.rows), workers):
        examples = data.train.part(number)
        dense.append(moments(examples.dense)[None])
        seen[examples.rows.to(device)] = 1
        liked += examples.label.double().sum()
    every = all_gather_rows(torch.cat(dense).to(device)).cpu()
    all_reduce_sum([seen])
    all_reduce_sum([liked])
    learned = seen.cpu().nonzero()[:, 0].split(BLOCK)
    content = None
    if data.config.content_dim:
        content = reduce(merged, (moments(data.items.vectors(rows)) for rows in learned))
    rate = float(liked) / max(sum(data.train.rows), 1)
    ranker.set_statistics(dense=reduce(merged, every), content=content, rate=rate)
    return ranker


def fit(
    settings: RankerSettings,
    trainer: Trainer,
    data: Data,
    keep: Keep,
    *,
    seed: int,
    position: dict[str, float] | None = None,
    warm: bool = False,
) -> None:
    """Trains until validation gets no better.

    Rows come in the order of `models.ranking.schedule`. With fewer partitions than workers, a step's rows are drawn for
    all workers together and dealt out by turns, so that one worker or many take the same steps; at most workers - 1
    rows are left out of a step. Otherwise each worker draws from partitions of its own, and the few rows are left out
    of an epoch that would make some take more steps than others. They are others each time. Validation covers every
    row.

    Args:
        settings: of the fit.
        trainer: holds the ranker.
        data: the same on every worker.
        keep: what to do with what was reached.
        seed: of all draws.
        position: that of the state which the trainer has loaded; None for a fresh one.
        warm: whether the trainer begins with the weights of an earlier fit, which stand where no epoch is better.

    Raises:
        UserError: the loss is not a number.
    """
    at = position or {"epoch": 0, "best": float("inf"), "stale": 0, **EPOCH_START}
    if warm and position is None:
        started = time.perf_counter()
        at["best"], scores = validate(trainer, data)
        keep.improved(trainer)
        metrics = {"epoch": 0, **_validated(at["best"], scores), "rows": sum(data.train.rows)}
        metrics["seconds"] = time.perf_counter() - started
        keep.report(metrics, partial(trainer.save, position=at))
    while at["epoch"] < settings.epochs and at["stale"] < settings.patience:
        started = time.perf_counter() - at["seconds"]
        _seed_dropout(trainer, seed, at)
        for loss in trainer.steps(batches(settings, trainer, data, at, seed=seed)):
            at["step"] += 1
            at["total"] += float(loss)
            _seed_dropout(trainer, seed, at)
            if at["step"] % LOOK_EVERY == 0:
                position = {**at, "total": trainer.mean(at["total"]), "seconds": time.perf_counter() - started}
                keep.report({"epoch": at["epoch"], "step": at["step"]}, partial(trainer.save, position=position))
        if not at["step"]:
            raise UserError("There are fewer training rows than workers: train on one worker, or on a longer log.")
        valid, scores = validate(trainer, data)
        metrics = {
            "epoch": int(at["epoch"]) + 1,
            "train_log_loss": trainer.mean(at["total"] / at["step"]),
            **_validated(valid, scores),
            "rows": sum(data.train.rows),
            "seconds": time.perf_counter() - started,
        }
        better = valid < at["best"]
        if better:
            keep.improved(trainer)
        stale = 0 if better else at["stale"] + 1
        at = {"epoch": at["epoch"] + 1, "best": min(valid, at["best"]), "stale": stale, **EPOCH_START}
        keep.report(metrics, partial(trainer.save, position=at))


def _validated(loss: float, scores: dict[str, float]) -> dict[str, float]:
    return {"valid_log_loss": loss, **{f"valid_{name}": value for name, value in scores.items()}}


def validate(trainer: Trainer, data: Data) -> tuple[float, dict[str, float]]:
    """Returns log-loss and AUC (see `AucTally.scores`) of all validation rows, partition by partition.

    Raises:
        UserError: a probability is not a number.
    """
    total, scores = 0.0, AucTally()
    for number, rows in enumerate(data.valid.rows):
        if rows:
            examples = data.valid.part(number)
            logits = trainer.logits(rows, partial(examples.batch, data.items))
            label, probability = examples.label.numpy(), logits.double().sigmoid().numpy()
            if np.isnan(probability).any():
                raise UserError("The ranker's loss is not a number: lower its embedding_lr and dense_lr.")
            total += total_loss(label, probability)
            scores.add(label, probability)
    return total / max(sum(data.valid.rows), 1), scores.scores()


def batches(
    settings: RankerSettings, trainer: Trainer, data: Data, at: dict[str, float], *, seed: int
) -> Iterator[RankerInputs]:
    """This worker's shares of an epoch's steps, from the step at which `at` stands."""
    epoch = int(at["epoch"])
    steps = epoch_steps(
        data.train,
        batch_size=settings.batch_size,
        window_rows=settings.window_rows,
        rank=trainer.rank,
        workers=trainer.workers,
        seed=seed,
        epoch=epoch,
        first=int(at["step"]),
        even=settings.sharding == "row_wise",  # whose collectives on a CPU take messages of one size
    )
    for examples, step in steps:
        draws = generator(MASK, seed, epoch, step.draw)
        user, item, sid, levels = torch.rand(4, len(step.at), generator=draws)[:, step.mine]
        whole = levels.where(sid < settings.sid_dropout, 1.0)
        keep = Kept(user >= settings.id_dropout, item >= settings.id_dropout, whole)
        yield examples.batch(data.items, step.at[step.mine], keep=keep, total=step.total)


def _seed_dropout(trainer: Trainer, seed: int, at: dict[str, float]) -> None:
    """Dropout of a step depends on nothing that came before, so that a fit may go on from there."""
    torch.manual_seed(seed_of(DROPOUT, seed, int(at["epoch"]), int(at["step"]), trainer.rank))
