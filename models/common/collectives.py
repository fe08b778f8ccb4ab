"""Process groups: sums and rows over the workers of a data-parallel fit; alone, each gives back what it was given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist


def rank_and_size() -> tuple[int, int]:
    """This worker's rank and the number of workers."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


@contextmanager
def single_worker_group() -> Iterator[None]:
    """Makes this process the only worker of a gloo process group for the length of a block."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def all_reduce_sum(tensors: Sequence[torch.Tensor]) -> None:
    """Replaces each tensor by its sum over all workers: one message, whatever the number of tensors."""
    if rank_and_size()[1] == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def all_gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Returns the rows [n, …] of all workers, in the order of their ranks; each may have another n, also none."""
    workers = rank_and_size()[1]
    if workers == 1:
        return rows
    counts = torch.zeros(workers, dtype=torch.int64, device=rows.device)
    counts[rank_and_size()[0]] = len(rows)
    dist.all_reduce(counts)
    padded = rows.new_zeros(int(counts.max()), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(workers)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


def broadcast(tensor: torch.Tensor) -> torch.Tensor:
    """Ranks 0's values, in place."""
    if rank_and_size()[1] > 1:
        dist.broadcast(tensor, src=0)
    return tensor
