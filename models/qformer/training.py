"""Trains a captioner: the loop of one worker. Knows nothing of Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.common.collectives import all_reduce_sum, rank_and_size
from models.common.data_parallel import backward, evaluating, parallelise, restore, snapshot
from models.common.seeds import generator, seed_of
from models.qformer.learners import Aligning, Batch, Writing
from models.qformer.model import CaptionModel
from models.qformer.settings import Phase, Recipe
from storage.errors import UserError

ORDER, VIEWS, TEXTS, DROPOUT = 501, 502, 503, 504  # what is drawn
REPORT_EVERY = 10  # steps between two reports, each a chance to keep a state
STAGES: tuple[tuple[str, Any], ...] = (("align", Aligning), ("write", Writing))

State = dict[str, Tensor]


class Pictures(NamedTuple):
    """What a captioner learns from.

    Attributes:
        features: float16 [all, WIDTH], mapped from a file; the views of a picture one after the other, the plain one
            first.
        rows: int64 [N], the first row of each picture's features.
        views: of each picture.
        texts: int64 [all texts, T], in the Q-Former's tokens.
        ends: int64 [N + 1], the texts of a picture are those from its own number to the next.
        captions: int64 [N, T], what the decoder is to write, in its own tokens.
        whole: bool [N], whose caption says about as much as others do; only those are written.
        train, valid: numbers of pictures, int64.
    """

    features: np.ndarray
    rows: Tensor
    views: int
    texts: Tensor
    ends: Tensor
    captions: Tensor
    whole: Tensor
    train: Tensor
    valid: Tensor

    def written(self) -> Pictures:
        """Returns those whose captions are whole; all of a part that has none."""

        def kept(part: Tensor) -> Tensor:
            found = part[self.whole[part]]
            return found if len(found) else part

        return self._replace(train=kept(self.train), valid=kept(self.valid))

    def batch(self, chosen: Tensor, texts: int, seeds: tuple[int, ...] | None) -> Batch:
        """Returns pictures by their numbers, each with so many of its texts; without seeds the first view and text."""
        count, several = len(chosen), self.ends.diff()[chosen]
        if seeds is None:
            view, drawn = torch.zeros(count, dtype=torch.int64), torch.zeros(count, 1, dtype=torch.int64)
        else:
            view = torch.randint(self.views, (count,), generator=generator(VIEWS, *seeds))
            keys = torch.rand(count, int(several.max()), generator=generator(TEXTS, *seeds))
            keys[torch.arange(keys.shape[1]) >= several[:, None]] = -1.0
            drawn = keys.argsort(1, descending=True)[:, :texts] % several[:, None]  # one with fewer has some twice
            drawn = torch.cat([drawn, drawn[:, :1].expand(-1, texts - drawn.shape[1])], dim=1)
        features = torch.from_numpy(self.features[(self.rows[chosen] + view).numpy()])
        return Batch(features, self.texts[self.ends[chosen][:, None] + drawn], self.captions[chosen])


class Trainer:
    """One worker's training in two stages, each of which ends with the weights whose held-out loss was the least.

    Negatives of the contrast are those of a worker's own pictures.
    """

    def __init__(
        self,
        model: CaptionModel,
        data: Pictures,
        recipe: Recipe,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        state: State | None = None,
    ) -> None:
        """Takes what is trained, in place, and from what; `state` of a killed attempt is resumed from."""
        self.model, self.data, self.recipe, self.seed, self.device = model, data, recipe, seed, torch.device(device)
        self._at = {"stage": 0.0, "step": 0.0, "least": math.inf, "seconds": 0.0}
        self._best: State = {}
        self._restored = dict(state or {})
        if state:
            self._at = {name: float(self._restored.pop(f"at.{name}")) for name in self._at}
            best = [name for name in state if name.startswith("best.")]
            self._best = {name.removeprefix("best."): self._restored.pop(name) for name in best}
        self._started = time.perf_counter() - self._at["seconds"]

    def run(self, report: Callable[[dict[str, Any], Callable[[], State]], None]) -> None:
        """Trains to the end; calls `report` with metrics, and with what takes the state on all workers.

        Raises:
            UserError: the loss is not a number.
        """
        for number, (name, learner) in enumerate(STAGES):
            phase: Phase = getattr(self.recipe, name)
            if number >= self._at["stage"] and phase.steps:
                self._at["stage"] = float(number)
                data = self.data.written() if name == "write" else self.data
                self._stage(number, name, phase, learner(self.model, self.recipe), data, report)
                if self._best:
                    self.model.load_own_state(self._best)
                self._at |= {"stage": number + 1.0, "step": 0.0, "least": math.inf}
                self._best = {}

    def _stage(self, number: int, name: str, phase: Phase, learner: Any, data: Pictures, report: Any) -> None:
        module = parallelise(learner, "ddp", self.device)
        optimizer = _optimizer(module, phase, self.recipe)
        if self._restored:
            whole = {f"model.learner.model.{key}": value for key, value in self.model.state_dict().items()}
            foreign = {key: value for key, value in whole.items() if self._is_foreign(key)}
            restore(module, optimizer, foreign | self._restored)
            self._restored = {}
        size = min(phase.batch_size, len(data.train))
        each = len(data.train) // size
        total = phase.steps
        module.train()
        while self._at["step"] < total:
            step = int(self._at["step"])
            for group in optimizer.param_groups:
                group["lr"] = phase.learning_rate * _rate(step, total, self.recipe.warmup)
            torch.manual_seed(seed_of(DROPOUT, self.seed, number, step, rank_and_size()[0]))
            optimizer.zero_grad(set_to_none=True)
            batch = _drawn(data, self.recipe, size, each, step, (self.seed, number))
            loss = backward(module, [batch.to(self.device)])
            if not math.isfinite(loss):
                raise UserError(f"The loss is not a number: lower {name}.learning_rate.")
            torch.nn.utils.clip_grad_norm_([part for part in module.parameters() if part.requires_grad], 1.0)
            optimizer.step()
            self.model.limit()
            self._at["step"] += 1
            metrics: dict[str, Any] = {"stage": name, "step": step + 1, "steps": total, "loss": loss}
            judged = (step + 1) % phase.validate_every == 0 or step + 1 == total
            if judged:
                held = _held_out(module, data, phase, self.device)
                if sum(held.values()) < self._at["least"]:
                    self._at["least"] = sum(held.values())
                    self._best = {key: value.detach().cpu().clone() for key, value in self.model.own_state().items()}
                metrics |= {"held_out": held, "seconds": time.perf_counter() - self._started}
            if judged or (step + 1) % REPORT_EVERY == 0:
                report(metrics, partial(self._state, module, optimizer))

    def _state(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> State:
        """Returns all that a killed attempt resumes from; every worker calls it."""
        now = {**self._at, "seconds": time.perf_counter() - self._started}
        exact = {f"at.{name}": torch.tensor(value, dtype=torch.float64) for name, value in now.items()}
        taken = {key: value for key, value in snapshot(module, optimizer).items() if not self._is_foreign(key)}
        return taken | {f"best.{name}": value for name, value in self._best.items()} | exact

    def _is_foreign(self, key: str) -> bool:
        """Returns whether a tensor is of a frozen decoder, which a state leaves out: it may be large."""
        return self.model.decoder.frozen and "decoder.model." in key


def _optimizer(module: torch.nn.Module, phase: Phase, recipe: Recipe) -> torch.optim.Optimizer:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [part for part in trained if part.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [part for part in trained if part.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=phase.learning_rate, betas=(0.9, 0.98))


def _rate(step: int, total: int, warmup: float) -> float:
    """Returns the share of the learning rate at a step."""
    return min(1.0, (step + 1) / max(warmup * total, 1)) * (0.55 + 0.45 * math.cos(math.pi * step / total))


def _drawn(data: Pictures, recipe: Recipe, size: int, each: int, step: int, seeds: tuple[int, ...]) -> Batch:
    """Returns this worker's part of a step: the pictures of an epoch come in an order of its own."""
    epoch, place = divmod(step, each)
    order = torch.randperm(len(data.train), generator=generator(ORDER, *seeds, epoch))
    rank, workers = rank_and_size()
    chosen = data.train[order[place * size : (place + 1) * size][rank::workers]]
    return data.batch(chosen, recipe.texts, (*seeds, step, rank))


@torch.no_grad()
def _held_out(module: torch.nn.Module, data: Pictures, phase: Phase, device: torch.device) -> dict[str, float]:
    """Returns the mean losses of the held-out pictures, over all workers."""
    rank, workers = rank_and_size()
    sums: dict[str, Tensor] = {}
    with evaluating(module) as learner:
        for batch in _batches(data, phase.batch_size, rank, workers):
            for name, loss in learner.losses(batch.to(device)).items():
                sums[name] = sums.get(name, torch.zeros(2, device=device)) + torch.stack(
                    [loss.float(), torch.ones_like(loss, dtype=torch.float32)]
                ) * len(batch.features)
    all_reduce_sum(list(sums.values()))
    return {name: float(total / weight) for name, (total, weight) in sums.items()}


def _batches(data: Pictures, size: int, rank: int, workers: int) -> Iterator[Batch]:
    """Yields equally many batches of held-out pictures on every worker."""
    valid = data.valid if len(data.valid) >= workers else data.valid.repeat(workers)
    share = len(valid) // workers
    mine = valid[rank * share : (rank + 1) * share]
    for start in range(0, share, size):
        yield data.batch(mine[start : start + size], 1, None)
