"""The order of training: that of one partition as it ever was, every row once, the same from any step on."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.common.seeds import generator
from models.ranking.schedule import SHUFFLE, Parts, Piece, Step, epoch_steps, in_memory, windows

SEED = 7


def steps_of(
    rows: list[int], rank: int, workers: int, *, batch_size: int, window_rows: int, epoch: int = 0, first: int = 0
) -> list[tuple[list[tuple[int, int]], Step]]:
    """A worker's rows (partition, row) of each step, and the step."""

    def read(pieces: tuple[Piece, ...]) -> list[tuple[int, int]]:
        assert list(pieces) == sorted(pieces)
        return [(part, row) for part, low, high in pieces for row in range(low, high)]

    found = epoch_steps(
        Parts(rows, read),
        batch_size=batch_size,
        window_rows=window_rows,
        rank=rank,
        workers=workers,
        seed=SEED,
        epoch=epoch,
        first=first,
    )
    return [([held[at] for at in step.at[step.mine].tolist()], step) for held, step in found]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize(
    ("rows", "batch_size", "first"), [(100, 12, 0), (100, 12, 4), (7, 12, 0), (50, 25, 1), (2, 3, 0)]
)
def test_the_order_of_one_partition_is_that_of_one_table(workers: int, rows: int, batch_size: int, first: int) -> None:
    for epoch in range(2):
        # As it was when all rows were one table.
        order = torch.randperm(rows, generator=generator(SHUFFLE, SEED, epoch))
        steps = [each[: len(each) // workers * workers] for each in order.split(batch_size)]
        steps = [each for each in steps if len(each)]
        for rank in range(workers):
            found = list(
                epoch_steps(
                    in_memory(range(rows)),
                    batch_size=batch_size,
                    window_rows=5,
                    rank=rank,
                    workers=workers,
                    seed=SEED,
                    epoch=epoch,
                    first=first,
                )
            )
            assert len(found) == len(steps[first:])
            for number, ((_, step), expected) in enumerate(zip(found, steps[first:], strict=True), first):
                assert step.at.equal(expected)
                assert step.at[step.mine].equal(expected[rank::workers])
                assert (step.draw, step.total) == (number, len(expected) / workers)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(4, 12),
    st.integers(1, 60),
    st.integers(0, 3),
)
def test_every_row_once_in_equally_many_steps(rows, workers, batch_size, window_rows, epoch) -> None:
    every = [
        steps_of(rows, rank, workers, batch_size=batch_size, window_rows=window_rows, epoch=epoch)
        for rank in range(workers)
    ]
    assert len({len(steps) for steps in every}) == 1
    taken = Counter(row for steps in every for held, _ in steps for row in held)
    assert max(taken.values(), default=1) == 1
    assert set(taken) <= {(part, row) for part, count in enumerate(rows) for row in range(count)}
    if workers == 1:
        assert len(taken) == sum(rows)
    for together in zip(*every, strict=True):
        shares = [len(held) for held, _ in together]
        assert min(shares) > 0
        assert {step.total for _, step in together} == {sum(shares) / workers}
        assert sum(shares) <= batch_size
    for rank, steps in enumerate(every):
        for first in {0, 1, len(steps) // 2, len(steps)}:
            again = steps_of(
                rows, rank, workers, batch_size=batch_size, window_rows=window_rows, epoch=epoch, first=first
            )
            assert [held for held, _ in again] == [held for held, _ in steps[first:]]


def test_little_is_left_out_and_others_each_time() -> None:
    rows, left = [100, 130, 90, 110, 70], []
    for epoch in range(4):
        taken = {
            row
            for rank in range(2)
            for held, _ in steps_of(rows, rank, 2, batch_size=8, window_rows=150, epoch=epoch)
            for row in held
        }
        left.append({(part, row) for part, count in enumerate(rows) for row in range(count)} - taken)
        assert len(left[-1]) <= 2 * 4
    assert not set.intersection(*left)


def test_windows_hold_what_fits_and_one_partition_at_least() -> None:
    rows = [30, 30, 30, 100, 5]
    for epoch in range(5):
        (own,) = windows(rows, readers=1, window_rows=65, seed=0, epoch=epoch)
        assert sorted(piece for window in own for piece in window.pieces) == [
            (part, 0, count) for part, count in enumerate(rows)
        ]
        assert all(window.rows <= 65 or len(window.pieces) == 1 for window in own)
    assert len({windows(rows, readers=1, window_rows=65, seed=0, epoch=epoch)[0][0] for epoch in range(5)}) > 1


def test_no_more_than_two_windows_are_held() -> None:
    held: list[int] = []

    class Held(list):
        def __del__(self) -> None:
            held.pop()

    def read(pieces: tuple[Piece, ...]) -> Held:
        held.append(1)
        most.append(len(held))
        return Held([0] * 10)

    most: list[int] = []
    steps = epoch_steps(
        Parts([10] * 6, read), batch_size=5, window_rows=10, rank=0, workers=1, seed=0, epoch=0, first=0
    )
    for _ in steps:
        pass
    assert len(most) == 6
    assert max(most) <= 3  # the one before is let go as the next one begins
