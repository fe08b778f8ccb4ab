"""Torch process groups for tests: a function on every rank, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing


def on_ranks(function: Callable[..., Any], folder: Path, world: int, *arguments: Any) -> list[Any]:
    """Call `function(rank, *arguments)` on every rank; give what the ranks returned."""
    torch.multiprocessing.spawn(_call, (function, str(folder), world, arguments), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _call(rank: int, function: Callable[..., Any], folder: str, world: int, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save(function(rank, *arguments), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
