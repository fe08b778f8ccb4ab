"""Drawings of clothes on white, as small as the photos that the shipped captioner learned from."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (190, 20, 35), "green": (30, 120, 50), "black": (15, 15, 15), "yellow": (230, 200, 40)}
SHIRT = (70, 60, 100, 50, 120, 62, 140, 50, 170, 60, 215, 120, 185, 145, 168, 120, 168, 270, 72, 270, 72, 120, 55, 145)
CANVAS, SIZE = (240, 320), (60, 80)


def shirt(colour: str) -> np.ndarray:
    """Return a t-shirt, uint8 [80, 60, 3]."""
    image = Image.new("RGB", CANVAS, "white")
    ImageDraw.Draw(image).polygon([*SHIRT, 25, 120], fill=COLOURS[colour])
    return np.asarray(image.resize(SIZE, Image.Resampling.LANCZOS))


def bag(colour: str) -> np.ndarray:
    """Return a handbag, uint8 [80, 60, 3]."""
    image = Image.new("RGB", CANVAS, "white")
    draw = ImageDraw.Draw(image)
    draw.arc((80, 60, 160, 220), 180, 360, fill=COLOURS[colour], width=9)
    draw.rounded_rectangle((45, 140, 195, 270), 18, fill=COLOURS[colour])
    return np.asarray(image.resize(SIZE, Image.Resampling.LANCZOS))
