from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from models.captioning.tagger.describe import describe

NOTHING, LABELS = np.zeros(1000), ["label"] * 1000


def caption(picture: Image.Image) -> str:
    return describe(np.asarray(picture), NOTHING, LABELS)


def draw(colour, *, second="white", stripes: str | None = None, side: int = 240, ground="white") -> Image.Image:
    """A square before a ground, with six stripes."""
    picture = Image.new("RGB", (side, side), ground)
    pen = ImageDraw.Draw(picture)
    low, high = round(0.15 * side), round(0.85 * side)
    pen.rectangle((low, low, high, high), fill=colour)
    for step in range(6):
        start, width = low + (high - low) * (step + 0.5) / 6, (high - low) / 15
        box = (start, low, start + width, high) if stripes == "vertical" else (low, start, high, start + width)
        if stripes:
            pen.rectangle(box, fill=second)
    return picture


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


@pytest.mark.parametrize("way", ["vertical", "horizontal"])
@pytest.mark.parametrize("side", [80, 240, 900])
@pytest.mark.parametrize("brightness", [0.85, 1.0])
@pytest.mark.parametrize("quality", [40, 95])
def test_a_striped_red_square_is_called_so_whatever_its_scale_light_and_compression(way, side, brightness, quality):
    picture = draw((210, 30, 40), stripes=way, side=side).point(lambda value: int(value * brightness))
    said = caption(jpeg(picture, quality))
    assert "mainly red" in said
    assert f"{way} stripes" in said


def test_a_quarter_turn_swaps_the_direction_of_stripes():
    picture = draw("navy", stripes="vertical")
    assert "vertical stripes" in caption(picture)
    assert "horizontal stripes" in caption(picture.rotate(90))


@pytest.mark.parametrize(
    ("ground", "found"), [("white", "white"), ((160, 165, 160), "grey"), ((30, 30, 30), "black"), ("tan", "beige")]
)
def test_the_subject_is_told_from_its_background(ground, found):
    said = caption(draw((30, 90, 200), ground=ground))
    assert f"mainly blue, on a {found} background" in said
    assert "plain" in said


def test_uneven_light_and_clutter_at_the_border_are_background():
    ramp = np.linspace(170, 250, 240)[:, None, None] * np.ones((1, 240, 3))
    picture = Image.fromarray(ramp.astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((0, 20, 30, 70), fill=(30, 120, 60))
    pen.ellipse((60, 60, 180, 180), fill=(230, 120, 30))
    assert "mainly orange, on a " in caption(picture)


def test_a_white_thing_before_white_is_not_lost_behind_its_dark_trim():
    picture = Image.new("RGB", (200, 200), "white")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((50, 30, 150, 170), fill=(232, 232, 232))
    pen.rectangle((50, 160, 150, 172), fill="black")
    assert "mainly white" in caption(picture)


def test_a_picture_of_one_colour_has_no_background():
    assert caption(Image.new("RGB", (60, 40), "red")).startswith("A picture of something, mainly red: ")


@pytest.mark.parametrize("size", [(1, 1), (2, 500), (500, 2), (33, 17)])
def test_any_size_and_any_pixels_give_one_sentence(size):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    said = describe(noise, NOTHING, LABELS)
    assert said.startswith("A picture of something, mainly ")
    assert said.endswith(".")
    assert said.count(".") == 1


def test_labels_are_named_only_when_likely():
    sure = np.zeros(1000)
    sure[7] = 0.9
    labels = ["x"] * 7 + ["cock"] + ["x"] * 992
    red = np.asarray(draw("red"))
    assert describe(red, sure, labels).startswith("A picture of cock, ")
    assert describe(red, NOTHING, labels).startswith("A picture of something, ")
