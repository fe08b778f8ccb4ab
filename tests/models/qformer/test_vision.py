from __future__ import annotations

import numpy as np
import pytest
import torch

from models.common.encoders import image_encoder
from models.qformer.vision import BINS, CELLS, GRID, WIDTH, look, parts


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    halves = np.zeros((80, 60, 3), np.uint8)
    halves[:40], halves[40:] = (255, 0, 0), (0, 0, 255)
    return [halves, rng.integers(0, 256, (50, 90, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)]


def test_a_picture_looks_the_same_in_any_company(pictures):
    together = look(pictures)
    assert together.shape == (3, WIDTH)
    assert together.dtype == np.float16
    for picture, features in zip(pictures, together, strict=True):
        assert np.array_equal(look([picture])[0], features)


def test_the_pooled_vector_is_the_encoders(pictures):
    found = parts(torch.from_numpy(look(pictures)).float()).pooled[:, 0]
    assert np.allclose(found, image_encoder().encode(pictures), atol=2e-3)


def test_colours_are_where_they_are(pictures):
    seen = parts(torch.from_numpy(look(pictures)).float())
    lab = seen.early[0, :, -3:].unflatten(0, (GRID, GRID))
    assert (lab[:3, :, 1] > 0.5).all()  # red is to the one side of CIELAB's second axis
    assert (lab[4:, :, 2] < -0.5).all()  # blue is to the one side of its third
    shares = seen.colours[0, 0].square()
    red, blue = 0b111_000_000, 0b000_000_111
    assert shares[[red, blue]].tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    assert seen.colours.shape == (3, 2, BINS)
    assert seen.colours.square().sum(-1).allclose(torch.ones(3, 2), atol=1e-2)
    assert seen.last.shape[1] == seen.early.shape[1] == CELLS
