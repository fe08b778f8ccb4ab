from __future__ import annotations

import functools
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.common import rows as rows_module
from models.common.encoders import image_encoder
from models.common.rows import encode_rows
from models.embedding.local import LocalTexts

NOISE = np.random.default_rng(0)
PICTURES = [NOISE.integers(0, 256, (32 + 9 * n, 40, 3), dtype=np.uint8) for n in range(6)]
TEXTS = [" ".join(NOISE.choice(["red", "silk", "dress", "of", "a", "hat"], 1 + 11 * n)) for n in range(6)]


@pytest.fixture
def threads():
    """Sets the number of torch's threads for a block of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def vectors_of(order: list[int], size: int) -> np.ndarray:
    """Picture and text vectors and label probabilities of rows in an order, asked for in slices; by row."""
    found = np.zeros((len(PICTURES), 1280 + 1000 + 384), np.float32)
    for start in range(0, len(order), size):
        asked = order[start : start + size]
        pictures = image_encoder().encode([PICTURES[row] for row in asked])
        labels = image_encoder().label_probabilities(pictures)
        texts = LocalTexts().embed_texts([TEXTS[row] for row in asked]).vectors
        found[asked] = np.concatenate([pictures, labels, texts], axis=1)
    return found


@functools.cache
def vectors_alone() -> np.ndarray:
    return vectors_of(list(range(6)), 1)


@settings(max_examples=6)
@given(order=st.permutations(range(6)), size=st.integers(1, 6), count=st.sampled_from([1, 2, 3]))
def test_a_row_has_one_vector_whatever_its_neighbours_and_however_many_threads(order, size, count):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        np.testing.assert_array_equal(vectors_of(order, size), vectors_alone())
        assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)


def test_a_gpu_gets_calls_of_one_size_from_one_group(monkeypatch):
    monkeypatch.setattr(rows_module, "rows_of_call", lambda device, size: size)
    calls = []

    def network(rows):
        calls.append(rows)
        return torch.tensor([[float(row)] for row in rows])

    groups = [[4, 2, 0], [1], [3, 5]]
    found = encode_rows(np.zeros((6, 1), np.float32), groups, network, device=torch.device("cpu"), size=2)
    assert sorted(calls) == [[0, 0], [1, 1], [3, 5], [4, 2]]
    assert found[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_many_threads_take_a_row_each_and_an_error_leaves_their_number(threads):
    threads(2)
    together, seen = threading.Barrier(2, timeout=10), set()

    def network(rows):
        together.wait()  # returns only if two calls run at a time
        seen.add(torch.get_num_threads())
        return torch.zeros(len(rows), 1)

    encode_rows(np.zeros((4, 1), np.float32), [range(4)], network, device=torch.device("cpu"))
    assert seen == {1}

    def broken(rows):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        encode_rows(np.zeros((4, 1), np.float32), [range(4)], broken, device=torch.device("cpu"))
    assert torch.get_num_threads() == 2
