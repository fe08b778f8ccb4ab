from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.quantizer import Architecture, Quantizer
from models.scorecard import collisions, reconstruction, scorecard, usage


def test_usage_of_a_known_case() -> None:
    codes = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    card = usage(codes, (2, 4))
    assert card["usage"] == [1.0, 0.5]
    assert card["dead_codes"] == [0, 2]
    assert card["perplexity"] == pytest.approx([2.0, 2.0])
    assert card["prefix_entropy"] == pytest.approx([1.0, 2.0])


def test_a_collapsed_level_shows() -> None:
    card = usage(np.zeros((100, 1), int), (256,))
    assert card["perplexity"] == [1.0]
    assert card["dead_codes"] == [255]


@given(arrays(np.int64, st.tuples(st.integers(1, 30), st.integers(1, 3)), elements=st.integers(0, 2)))
def test_collisions_equal_brute_force(codes: np.ndarray) -> None:
    rows = [tuple(row) for row in codes.tolist()]
    found = collisions(codes)
    assert found["share"] == pytest.approx(sum(rows.count(row) > 1 for row in rows) / len(rows))
    assert found["largest"] == max(rows.count(row) for row in rows)


@given(arrays(np.int64, st.tuples(st.integers(1, 30), st.integers(1, 3)), elements=st.integers(0, 4)))
def test_perplexity_and_entropy_stay_in_their_bounds(codes: np.ndarray) -> None:
    card = usage(codes, (5,) * codes.shape[1])
    for share, perplexity in zip(card["usage"], card["perplexity"], strict=True):
        assert 1 - 1e-9 <= perplexity <= 5 * share + 1e-9
    assert card["prefix_entropy"] == sorted(card["prefix_entropy"])
    assert card["prefix_entropy"][-1] <= math.log2(len(codes)) + 1e-9


def test_scorecard_reports_depths_and_deduplication() -> None:
    torch.manual_seed(0)
    quantizer = Quantizer(Architecture(4, hidden_dims=(), latent_dim=4, codebook_sizes=(2, 2)))
    quantizer.encoder, quantizer.decoder = (
        torch.nn.Sequential(),
        torch.nn.Sequential(),
    )  # codes on the inputs themselves
    words = torch.tensor([[3.0, 0, 0, 0], [-3.0, 0, 0, 0]]), torch.tensor([[0, 1.0, 0, 0], [0, -1.0, 0, 0]])
    quantizer.codebooks = torch.nn.ParameterList(words)
    data = torch.tensor([[3.0, 1, 0, 0], [-3.0, -1, 0, 0], [3.0, 1, 0, 0]])
    codes = quantizer.encode(data)
    assert codes.tolist() == [[0, 0], [1, 1], [0, 0]]
    depth = reconstruction(quantizer, data, codes)
    assert depth["reconstruction_mse"] == pytest.approx([0.25, 0.0])
    assert depth["reconstruction_cosine"] == pytest.approx([3 / math.sqrt(10), 1.0])
    card = scorecard(quantizer, data, codes.numpy(), np.array([0, 0, 1]))
    assert (card["collision_share"], card["collision_share_after"]) == (pytest.approx(2 / 3), 0.0)
    assert card["largest_collision"] == 2
