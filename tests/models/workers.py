"""Torch process groups for tests: a function on every rank, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing

from models.common.collectives import single_worker_group

WORLD = 2
START = "forkserver"  # its children have imported already what takes seconds; they share the secret of string hashes
torch.multiprocessing.get_context(START).set_forkserver_preload(["torchrec", "models.common.data_parallel"])

_files: list[str] = []  # where the ranks of this process meet, one file for each time


def on_ranks(function: Callable[..., Any], folder: Path, calls: list[tuple[Any, ...]]) -> list[list[Any]]:
    """Call `function(rank, *arguments)` for each of some arguments on two ranks.

    Returns:
        For each call what the ranks returned.
    """
    torch.multiprocessing.start_processes(_call, (function, str(folder), calls), nprocs=WORLD, start_method=START)
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
    return [list(found) for found in zip(*ranks, strict=True)]


def _call(rank: int, function: Callable[..., Any], folder: str, calls: list[tuple[Any, ...]]) -> None:
    torch.set_num_threads(1)
    np.random.seed(rank)  # noqa: NPY002 - nothing may count on the ranks' global state being alike
    _files[:] = (f"{folder}/rendezvous-{number}" for number in range(100))
    _join(rank)
    torch.save([function(rank, *arguments) for arguments in calls], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@contextmanager
def apart(rank: int) -> Iterator[None]:
    """Let each rank be alone in a process group of its own for the length of a block; both have to call it."""
    dist.destroy_process_group()
    try:
        with single_worker_group():
            yield
    finally:
        _join(rank)


def _join(rank: int) -> None:
    """Join the group of all ranks; returns when every one is in it, so that none leaves while another connects."""
    dist.init_process_group("gloo", init_method=f"file://{_files.pop()}", rank=rank, world_size=WORLD)
    dist.barrier()
