from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from models.tagger import COLOURS, describe, name_colours, to_lab

NOTHING, LABELS = np.zeros(1000), ["label"] * 1000


def draw(colour, *, stripes: str | None = None) -> np.ndarray:
    picture = Image.new("RGB", (120, 120), "white")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((15, 15, 105, 105), fill=colour)
    for at in range(20, 105, 16):
        if stripes == "vertical":
            pen.rectangle((at, 15, at + 7, 105), fill="black")
        if stripes == "horizontal":
            pen.rectangle((15, at, 105, at + 7), fill="black")
    return np.asarray(picture)


@pytest.mark.parametrize("name", [name for name in COLOURS if name not in ("white", "beige")])
def test_the_subjects_colour_is_named(name):
    assert f"mainly {name}," in describe(draw(COLOURS[name][0]), NOTHING, LABELS)


@pytest.mark.parametrize("way", ["vertical", "horizontal"])
def test_stripes_are_seen_with_their_direction(way):
    assert f"{way} stripes" in describe(draw((240, 130, 30), stripes=way), NOTHING, LABELS)
    assert "stripes" not in describe(draw((240, 130, 30)), NOTHING, LABELS)


def test_lab_agrees_with_reference_values():
    # sRGB red, and mid grey: CIELAB under D65, as tabulated by colour calculators.
    np.testing.assert_allclose(
        to_lab(np.array([[255, 0, 0], [119, 119, 119]])), [[53.2, 80.1, 67.2], [50.0, 0, 0]], atol=0.3
    )
    assert len(name_colours(np.zeros((0, 3)))) == 0


def test_labels_are_named_only_when_likely():
    sure = np.zeros(1000)
    sure[7] = 0.9
    labels = ["x"] * 7 + ["cock"] + ["x"] * 992
    assert describe(draw("red"), sure, labels).startswith("A picture of cock, ")
    assert describe(draw("red"), NOTHING, labels).startswith("A picture of something, ")
