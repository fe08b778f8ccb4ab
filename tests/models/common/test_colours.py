from __future__ import annotations

import numpy as np
import pytest

from models.common.colours import COLOURS, NAMES, name_colours, to_lab


def test_lab_agrees_with_reference_values():
    # sRGB red, and mid grey: CIELAB under D65, as tabulated by colour calculators.
    pixels = np.array([[255, 0, 0], [119, 119, 119]], np.uint8)
    np.testing.assert_allclose(to_lab(pixels), [[53.2, 80.1, 67.2], [50.0, 0, 0]], atol=0.3)


@pytest.mark.parametrize("name", COLOURS)
def test_every_shade_has_its_name(name):
    shades = np.array(COLOURS[name], np.uint8)
    assert {NAMES[index] for index in name_colours(shades)} == {name}


def test_the_name_is_that_of_the_nearest_shade():
    """The table that names are looked up in is coarse: a pixel may miss the nearest shade by what a cell spans."""
    pixels = np.random.default_rng(0).integers(0, 256, (500, 3), np.uint8)
    distances = np.stack(
        [
            np.linalg.norm(to_lab(pixels)[:, None] - to_lab(np.array(shades, np.uint8)), axis=-1).min(axis=1)
            for shades in COLOURS.values()
        ]
    )
    taken = distances[name_colours(pixels), np.arange(len(pixels))]
    assert (taken - distances.min(axis=0)).max() < 8
    assert (name_colours(pixels) == distances.argmin(axis=0)).mean() > 0.9


def test_no_pixels_have_no_names():
    assert name_colours(np.zeros((0, 3), np.uint8)).shape == (0,)
