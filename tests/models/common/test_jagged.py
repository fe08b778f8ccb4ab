from __future__ import annotations

import doctest

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.common import jagged
from models.common.jagged import Jagged, filled, from_arrays, last, newest, padded, sliced

ROWS = st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=5)


def of(rows: list[list[int]]) -> Jagged:
    offsets = np.cumsum([0, *map(len, rows)])
    return from_arrays(np.array([value for row in rows for value in row], np.int32), offsets)


def rows_in(source: Jagged) -> list[list[int]]:
    return [source.values[start:end].tolist() for start, end in zip(source.offsets, source.offsets[1:], strict=False)]


@given(ROWS, st.integers(1, 7))
def test_the_last_values_are_those_of_a_slice(rows: list[list[int]], length: int) -> None:
    tails = [row[-length:] for row in rows]
    width = max(map(len, tails), default=0)
    assert rows_in(last(of(rows), length)) == tails
    assert padded(of(rows), length=length, fill=-1).tolist() == [tail + [-1] * (width - len(tail)) for tail in tails]
    columns = newest(of(rows), length=length, fill=-1).T.tolist()
    assert columns == [tail[::-1] + [-1] * (length - len(tail)) for tail in tails]


@given(ROWS, st.data())
def test_empty_lists_are_filled_and_lists_are_sliced(rows: list[list[int]], data: st.DataObject) -> None:
    assert rows_in(filled(of(rows), 7)) == [row or [7] for row in rows]
    start = data.draw(st.integers(0, len(rows)))
    end = data.draw(st.integers(start, len(rows)))
    found = sliced(of(rows), start, end)
    assert (rows_in(found), found.weights) == (rows[start:end], None)
    weighted = of(rows)._replace(weights=torch.arange(len(of(rows).values)).float())
    part = sliced(weighted, start, end)
    assert part.weights is not None
    assert part.weights.tolist() == list(range(int(weighted.offsets[start]), int(weighted.offsets[end])))


def test_the_examples_hold() -> None:
    assert doctest.testmod(jagged).failed == 0
