"""One worker's part of fitting a ranker: optimiser steps, predictions, state. Needs a process group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from models.common.devices import dtype_of
from models.common.settings import Precision
from models.ranking import checkpoints
from models.ranking.ranker import Ranker, RankerInputs, TrainingTask
from models.ranking.sharding import draw_tables, fill, gather_state, shard

STD = 0.1  # of embeddings at the start; smaller ones take long to tell users and items apart by their products


class Trainer:
    """A ranker spread over the workers of a process group; every method has to be called by all of them."""

    def __init__(
        self, ranker: Ranker, *, device: torch.device, precision: Precision = "fp32", seed: int = 0, **optimisation: Any
    ) -> None:
        """Shards the ranker, see `models.ranking.sharding.shard`, and draw its embeddings.

        Args:
            seed: of the embeddings.
            precision: of everything above the embeddings, whose tables and updates stay fp32.
            optimisation: learning rates, weight decay and kinds of sharding and optimiser, as `shard` takes them.
        """
        self.device = device
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        task = TrainingTask(ranker, dtype_of(precision, device), device.type)
        self.model, self.optimizer = shard(task, device=device, **optimisation)
        draw_tables(self.model, std=STD, seed=seed)

    def steps(self, batches: Iterable[RankerInputs]) -> Iterator[torch.Tensor]:
        """Takes one optimiser step per batch; yields this worker's share of each step's log-loss, float32 [].

        The mean of the shares over the workers is the loss of the step. The next batch is read and distributed while
        the current one is computed. All workers need equally many batches, and none an empty one.
        """
        self.model.train()
        pipeline = TrainPipelineSparseDist(self.model, self.optimizer, self.device, execute_all_batches=True)
        source = (batch.pin_memory() for batch in batches) if self.device.type == "cuda" else iter(batches)
        try:
            with suppress(StopIteration):
                while True:
                    loss, _ = pipeline.progress(source)
                    yield loss
        finally:
            pipeline.detach()

    @torch.no_grad()
    def logits(
        self, rows: int, batch: Callable[[torch.Tensor], RankerInputs], *, batch_size: int = 4096
    ) -> torch.Tensor:
        """Logits of all rows, float32 [rows] on the CPU of every worker; each row is computed once.

        Workers take turns by row and make equally many steps: where one has run out it computes row 0 again.

        Args:
            rows: how many there are, at least one.
            batch: the input for row positions int64 [B].
        """
        mine = torch.arange(self.rank, -(-rows // self.workers) * self.workers, self.workers)
        self.model.eval()
        found = [
            self.model(batch(torch.where(at < rows, at, 0)).to(self.device))[1][1] for at in mine.split(batch_size)
        ]
        shares = [torch.empty(len(mine), device=self.device) for _ in range(self.workers)]
        dist.all_gather(shares, torch.cat(found))
        return torch.stack(shares, dim=1).flatten()[:rows].cpu()

    def mean(self, value: float) -> float:
        """Means of a number over the workers."""
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total) / self.workers

    def gather(self) -> dict[str, torch.Tensor] | None:
        """Returns the ranker's plain state dict, whole tables on the CPU, on the first worker; None elsewhere."""
        return gather_state(self.model, prefix="ranker.")

    def fill(self, state: dict[str, torch.Tensor]) -> None:
        """Sets the ranker to a plain state dict as `gather` returns it; the optimiser begins anew."""
        fill(self.model, state, prefix="ranker.")

    def save(self, folder: str, position: dict[str, float]) -> None:
        """Writes weights, optimiser state and a position, see `models.ranking.checkpoints.save`."""
        checkpoints.save(folder, model=self.model, optimizer=self.optimizer, position=position)

    def load(self, folder: str) -> dict[str, float]:
        """Takes over what `save` wrote, with any number of workers; returns the position.

        Raises:
            UserError: it is damaged, or of another ranker.
        """
        return checkpoints.load(folder, model=self.model, optimizer=self.optimizer)
