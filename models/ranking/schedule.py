"""The order of training: which rows of which partitions a worker takes, step by step; a function of seed and epoch.

The order of partitions is shuffled. Partitions that follow each other make a window, which is read whole, and whose
rows are shuffled. With at least as many partitions as workers, each worker reads windows of its own: an equal share of
all rows, as the shuffled partitions come one after the other. A partition in which one share ends and the next begins
is read by both workers, and each takes its part. With fewer partitions all workers read the same windows and take their
rows by turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch

from models.common.seeds import generator

SHUFFLE, PARTITIONS = 1, 4  # what is drawn; see `models.ranking.fitting` for other draws
Piece = tuple[int, int, int]  # a partition, the first of its rows that is taken, and the one after the last
Rows = TypeVar("Rows", covariant=True)


class Parts(NamedTuple, Generic[Rows]):
    """A split's rows in partitions, which are read a few at a time."""

    rows: Sequence[int]  # of every partition
    read: Callable[[tuple[Piece, ...]], Rows]  # pieces in ascending order, as one

    def part(self, number: int) -> Rows:
        """Reads a partition."""
        return self.read(((number, 0, self.rows[number]),))


def in_memory(rows: Sized) -> Parts[Any]:
    """Returns rows that are at hand as the only partition."""
    return Parts([len(rows)], lambda pieces: rows)


class Window(NamedTuple):
    """What is read and shuffled together."""

    pieces: tuple[Piece, ...]  # in ascending order
    rows: int


class Step(NamedTuple):
    """One worker's rows of a step: positions int64 [B] in the rows of its window."""

    at: torch.Tensor  # those of all workers that read this window
    mine: slice  # this worker's among them
    draw: int  # tells this worker's draws of this step from all others; the same for all that read this window
    total: float  # rows of the step over the number of workers


def epoch_steps(
    parts: Parts[Rows],
    *,
    batch_size: int,
    window_rows: int,
    rank: int,
    workers: int,
    seed: int,
    epoch: int,
    first: int,
    even: bool = False,
) -> Iterator[tuple[Rows, Step]]:
    """Yields a worker's steps of an epoch and the rows that each is taken from, from step `first` on.

    A step ends where its window ends. All workers take as many steps as the one with the fewest. What is left out of an
    epoch is less than workers rows and, where one has more windows than another, a step for each; others each time.
    While a window is in use the next one is read, and no more, so that two are held at most. `even` leaves out more, so
    that all workers have equally many rows in a step.
    """
    readers = workers if sum(rows > 0 for rows in parts.rows) >= workers else 1
    chunk, turns, reader = batch_size // readers, workers // readers, rank % readers
    every = windows(parts.rows, readers=readers, window_rows=window_rows, seed=seed, epoch=epoch)
    sizes = [[_sizes(window.rows, chunk, turns) for window in own] for own in every]
    steps = min(sum(map(len, each)) for each in sizes)
    taken = np.stack([np.concatenate([*each, []])[:steps] for each in sizes]).astype(int)  # rows, [readers, steps]
    taken = np.broadcast_to(taken.min(0), taken.shape) if even else taken
    totals = taken.sum(0) / workers
    ends = np.cumsum([len(each) for each in sizes[reader]])
    own = [n for n, end in enumerate(ends) if end > first and end - len(sizes[reader][n]) < steps]
    for number, rows in zip(own, _read_ahead(parts, [every[reader][n] for n in own]), strict=True):
        draws = generator(SHUFFLE, seed, epoch, number * readers + reader)
        order = torch.randperm(every[reader][number].rows, generator=draws)
        begin = int(ends[number]) - len(sizes[reader][number])
        for step, at in zip(range(begin, min(steps, int(ends[number]))), order.split(chunk), strict=False):
            if step >= first:
                at = at[: taken[reader, step]]
                yield rows, Step(at, slice(rank // readers, None, turns), step * readers + reader, totals[step])


def windows(rows: Sequence[int], *, readers: int, window_rows: int, seed: int, epoch: int) -> list[list[Window]]:
    """Returns the windows of an epoch, in order, for each of several readers, which have equally many rows.

    Args:
        rows: of every partition.
        readers: how many there are.
        window_rows: of a window, at most; but it holds one partition at least.
        seed, epoch: decide the order of partitions.
    """
    order = torch.randperm(len(rows), generator=generator(PARTITIONS, seed, epoch)).tolist()
    share, found = sum(rows) // readers, []
    for reader in range(readers):
        own: list[list[Piece]] = []
        held = start = 0
        for part in order:
            low, high = max(reader * share - start, 0), min((reader + 1) * share - start, rows[part])
            start += rows[part]
            if low < high:
                if not own or held + high - low > window_rows:
                    own.append([])
                    held = 0
                own[-1].append((part, low, high))
                held += high - low
        found.append([Window(tuple(sorted(each)), sum(high - low for _, low, high in each)) for each in own])
    return found


def _sizes(rows: int, chunk: int, turns: int) -> np.ndarray:
    """Returns the sizes of a window's steps: equal shares for all that take turns, none of them empty."""
    last = rows % chunk
    sizes = np.array([chunk] * (rows // chunk) + [last] * (last > 0)) // turns * turns
    return sizes[sizes > 0]


def _read_ahead(parts: Parts[Rows], own: Sequence[Window]) -> Iterator[Rows]:
    """Yields the rows of windows, each read while the one before it is in use."""
    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(parts.read, window.pieces) for window in own[:1]]
        for window in own[1:]:
            rows = coming.pop().result()
            coming.append(pool.submit(parts.read, window.pieces))
            yield rows
            del rows
        if coming:
            yield coming.pop().result()
