from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.semantic_ids.training_rows import collect, draw, lowest, mix, uniform


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 3)).astype(np.float32)


def stream(values: np.ndarray, size: int):
    for start in range(0, max(len(values), 1), size):
        part = values[start : start + size]
        yield part, part[:, :1] * 2


@given(st.permutations(range(40)), st.integers(1, 50), st.integers(0, 5))
def test_what_is_held_depends_on_neither_order_nor_batches(order: list[int], size: int, seed: int) -> None:
    values = rows(40)
    wanted, found = collect(stream(values, 40), seed=seed), collect(stream(values[order], size), seed=seed)
    assert torch.equal(found.values, wanted.values)
    assert (found.keys == wanted.keys).all()
    assert (np.diff(found.keys.astype(object)) > 0).all()
    assert torch.equal(found.signals, found.values[:, :1] * 2)


def test_a_share_is_about_that_share_and_part_of_any_larger_one() -> None:
    values = rows(4_000)
    held = [set(collect(stream(values, 512), share=share).keys.tolist()) for share in (0.1, 0.5, 1.0)]
    assert held[0] < held[1] < held[2]
    assert [round(len(part) / 4_000, 1) for part in held] == [0.1, 0.5, 1.0]


def test_no_rows_are_held_of_an_empty_stream() -> None:
    assert len(collect(stream(rows(0), 5)).keys) == 0


def test_mixing_is_a_bijection_that_differs_with_the_seed() -> None:
    keys = np.arange(10_000, dtype=np.uint64)
    assert len(np.unique(mix(keys, 0))) == 10_000
    assert abs(np.corrcoef(mix(keys, 0).astype(float), mix(keys, 1).astype(float))[0, 1]) < 0.05
    numbers = uniform(keys, 3)
    assert 0 < float(numbers.min()) <= float(numbers.max()) <= 1
    assert abs(float(numbers.mean()) - 0.5) < 0.02


def test_draws_follow_the_weights_and_repeat_no_row() -> None:
    values = torch.arange(4.0).unsqueeze(1)
    keys = np.arange(4, dtype=np.uint64)
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0])
    first = [int(draw(values, weights, 1, keys=keys, seed=seed)) for seed in range(2_000)]
    assert abs(first.count(3) / 2_000 - 0.75) < 0.04
    assert first.count(0) == first.count(2) == 0
    assert sorted(draw(values, weights, 4, keys=keys, seed=0)[:, 0].tolist()) == [0, 1, 2, 3]


def test_the_lowest_come_in_the_order_of_their_scores() -> None:
    values, scores = torch.arange(6.0).unsqueeze(1), torch.tensor([3.0, 1.0, 2.0, 1.0, 9.0, 0.0]).double()
    assert lowest(values, scores, 4)[:, 0].tolist() == [5, 1, 3, 2]
    assert len(lowest(values, scores, 10)) == 6
