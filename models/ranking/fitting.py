"""Fitting a ranker: the loop of one worker. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from models.common.seeds import generator, seed_of
from models.evaluation.clicks import auc, log_loss
from models.ranking.config import RankerConfig
from models.ranking.ranker import Ranker, RankerInputs
from models.ranking.settings import RankerSettings
from models.ranking.training import Trainer
from storage.errors import UserError

LOOK_EVERY = 50  # steps between two chances to keep a state
SHUFFLE, MASK, DROPOUT = 1, 2, 3  # what is drawn
EPOCH_START = {"step": 0, "total": 0.0, "seconds": 0.0}


class Items(Protocol):
    """The item side of a catalogue; see `operators.features.ranker_inputs.ItemFeatures`."""

    embedding: torch.Tensor  # float32 [N, D]


class Examples(Protocol):
    """M rows to learn from or to validate on; see `operators.features.ranker_inputs.Examples`."""

    rows: torch.Tensor  # item rows, int64 [M]
    dense: torch.Tensor  # float32 [M, n]
    label: torch.Tensor  # float32 [M]

    def __len__(self) -> int: ...

    def batch(
        self, items: Any, at: torch.Tensor, keep: torch.Tensor | None = None, total: float | None = None
    ) -> RankerInputs:
        """Returns the ranker's input for the rows at positions int64 [B]."""


class Data(NamedTuple):
    """What a ranker is fitted on."""

    config: RankerConfig
    items: Items
    train: Examples
    valid: Examples


class Keep(NamedTuple):
    """What a loop does with what it has reached."""

    report: Callable[[dict[str, Any], Callable[[str], None]], None]  # metrics, and what saves the state to a folder
    improved: Callable[[Trainer], None]  # the best epoch so far is in the trainer


def make_ranker(data: Data) -> Ranker:
    """A ranker that knows the statistics of the training rows, and of the items in them."""
    ranker = Ranker(data.config)
    content = data.items.embedding[data.train.rows.unique()] if data.config.content_dim else None
    ranker.set_statistics(dense=data.train.dense, content=content, rate=float(data.train.label.mean()))
    return ranker


def fit(
    settings: RankerSettings,
    trainer: Trainer,
    data: Data,
    keep: Keep,
    *,
    seed: int,
    position: dict[str, float] | None = None,
) -> None:
    """Trains until validation gets no better.

    A step's rows are drawn for all workers together and dealt out by turns, so that one worker or many take the same
    steps; at most workers - 1 rows are left out of a step, others each time. Validation covers every row.

    Args:
        settings: of the fit.
        trainer: holds the ranker.
        data: the same on every worker.
        keep: what to do with what was reached.
        seed: of all draws.
        position: that of the state which the trainer has loaded; None for a fresh one.

    Raises:
        UserError: the loss is not a number.
    """
    at = position or {"epoch": 0, "best": float("inf"), "stale": 0, **EPOCH_START}
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
        logits = trainer.logits(len(data.valid), lambda rows: data.valid.batch(data.items, rows))
        label, probability = data.valid.label.numpy(), logits.double().sigmoid().numpy()
        valid = log_loss(label, probability)
        if np.isnan(probability).any():
            raise UserError("The ranker's loss is not a number: lower its embedding_lr and dense_lr.")
        metrics = {
            "epoch": int(at["epoch"]) + 1,
            "train_log_loss": trainer.mean(at["total"] / at["step"]),
            "valid_log_loss": valid,
            "valid_auc": auc(label, probability),
            "rows": len(data.train),
            "seconds": time.perf_counter() - started,
        }
        better = valid < at["best"]
        if better:
            keep.improved(trainer)
        stale = 0 if better else at["stale"] + 1
        at = {"epoch": at["epoch"] + 1, "best": min(valid, at["best"]), "stale": stale, **EPOCH_START}
        keep.report(metrics, partial(trainer.save, position=at))


def batches(
    settings: RankerSettings, trainer: Trainer, data: Data, at: dict[str, float], *, seed: int
) -> Iterator[RankerInputs]:
    """This worker's shares of an epoch's steps, from the step at which `at` stands."""
    epoch, size, workers = int(at["epoch"]), settings.batch_size, trainer.workers
    order = torch.randperm(len(data.train), generator=generator(SHUFFLE, seed, epoch))
    steps = [rows[: len(rows) // workers * workers] for rows in order.split(size)]  # equal shares, none of them empty
    steps = [rows for rows in steps if len(rows)]
    for step, rows in list(enumerate(steps))[int(at["step"]) :]:
        keep = torch.rand(2, len(rows), generator=generator(MASK, seed, epoch, step)) >= settings.id_dropout
        mine = slice(trainer.rank, None, workers)
        yield data.train.batch(data.items, rows[mine], keep=keep[:, mine], total=len(rows) / workers)


def _seed_dropout(trainer: Trainer, seed: int, at: dict[str, float]) -> None:
    """Dropout of a step depends on nothing that came before, so that a fit may go on from there."""
    torch.manual_seed(seed_of(DROPOUT, seed, int(at["epoch"]), int(at["step"]), trainer.rank))
