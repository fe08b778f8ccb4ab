"""Networks applied row by row, so that a row's vector depends on the row and on nothing else.

Matrix products of other shapes, or on other numbers of threads, add up in another order and differ in the last bits.
A vector that goes by its neighbours goes by the order of the table, and a hash of it with it: see
docs/decisions/0008-rows-by-themselves.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from models.common.threads import one_thread

GPU_ROWS = 32  # of a call on a GPU


def rows_of_call(device: torch.device, size: int) -> int:
    """Returns the rows that pass a network at once: `size` on a GPU, one on a CPU, where more are no faster."""
    return 1 if device.type == "cpu" else size


def encode_rows(
    vectors: np.ndarray,
    groups: Iterable[Sequence[int]],
    network: Callable[[list[int]], Tensor],
    *,
    device: torch.device,
    size: int = GPU_ROWS,
) -> np.ndarray:
    """Sets the vectors of rows, by calls of one shape on one thread each; as many calls at a time as torch has threads.

    Args:
        vectors: float32 [N, width], written in place and returned.
        groups: numbers of rows, those with inputs of one shape together; every call has rows of one group.
        network: gives the vectors [n, width] of n rows; a call that has fewer than the others repeats its last one.
        device: of the network.
        size: rows of a call on a GPU.
    """
    size = rows_of_call(device, size)
    calls = [list(group[start : start + size]) for group in groups for start in range(0, len(group), size)]

    @torch.inference_mode()
    def call(rows: list[int]) -> None:
        found = network([*rows, *rows[-1:] * (size - len(rows))])
        vectors[rows] = found[: len(rows)].float().cpu().numpy()

    with one_thread() if device.type == "cpu" else nullcontext(1) as threads:
        if threads == 1:
            for rows in calls:
                call(rows)
        else:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                list(pool.map(call, calls))
    return vectors
