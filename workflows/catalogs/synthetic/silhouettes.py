"""Eight product silhouettes as antialiased masks.

Each shape fills two stencils in unit coordinates (origin top left): the body, which carries colour, pattern and
material, and the trim (handles, soles, stems), which takes a darker tone of the same colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float]


class Stencil:
    """A mask (L, size x size) with drawing in unit coordinates; fill 0 cuts holes."""

    def __init__(self, size: int) -> None:
        self.mask = Image.new("L", (size, size))
        self._draw = ImageDraw.Draw(self.mask)
        self._size = size

    def polygon(self, points: Sequence[Point], fill: int = 255) -> None:
        """Fills a polygon."""
        self._draw.polygon([(x * self._size, y * self._size) for x, y in points], fill=fill)

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, fill: int = 255) -> None:
        """Fills an ellipse inside a box."""
        self._draw.ellipse(self._box(x0, y0, x1, y1), fill=fill)

    def box(self, x0: float, y0: float, x1: float, y1: float, radius: float = 0.0, fill: int = 255) -> None:
        """Fills a box with rounded corners."""
        self._draw.rounded_rectangle(self._box(x0, y0, x1, y1), radius=radius * self._size, fill=fill)

    def stroke(self, points: Sequence[Point], width: float) -> None:
        """Draws a line through points."""
        scaled = [(x * self._size, y * self._size) for x, y in points]
        self._draw.line(scaled, fill=255, width=round(width * self._size), joint="curve")

    def arc(self, box: tuple[float, float, float, float], start: float, end: float, width: float) -> None:
        """Draws an arc between two angles in degrees, clockwise from three o'clock."""
        self._draw.arc(self._box(*box), start, end, fill=255, width=round(width * self._size))

    def _box(self, *corners: float) -> tuple[float, float, float, float]:
        x0, y0, x1, y1 = (corner * self._size for corner in corners)
        return x0, y0, x1, y1


def _smooth(points: Sequence[Point], rounds: int = 3) -> list[Point]:
    """Rounds a closed polygon by cutting its corners (Chaikin 1974)."""
    corners = np.array(points)
    for _ in range(rounds):
        following = np.roll(corners, -1, axis=0)
        corners = np.stack([0.75 * corners + 0.25 * following, 0.25 * corners + 0.75 * following], 1).reshape(-1, 2)
    return [(float(x), float(y)) for x, y in corners]


def _mug(body: Stencil, trim: Stencil) -> None:
    trim.arc((0.56, 0.34, 0.94, 0.72), -100, 100, 0.07)
    body.box(0.16, 0.22, 0.72, 0.84, radius=0.08)
    body.box(0.16, 0.22, 0.72, 0.5)
    body.ellipse(0.16, 0.15, 0.72, 0.29)
    trim.ellipse(0.19, 0.17, 0.69, 0.27)


def _shirt(body: Stencil, trim: Stencil) -> None:
    half = [(0.37, 0.14), (0.22, 0.2), (0.03, 0.44), (0.16, 0.54), (0.26, 0.43), (0.25, 0.9)]
    body.polygon(half + [(1 - x, y) for x, y in reversed(half)])
    body.ellipse(0.38, 0.06, 0.62, 0.24, fill=0)
    trim.arc((0.37, 0.05, 0.63, 0.25), 15, 165, 0.03)
    trim.stroke([(0.05, 0.43), (0.17, 0.525)], 0.025)
    trim.stroke([(0.95, 0.43), (0.83, 0.525)], 0.025)


def _shoe(body: Stencil, trim: Stencil) -> None:
    upper = [(0.05, 0.76), (0.07, 0.3), (0.2, 0.26), (0.27, 0.38), (0.4, 0.3), (0.56, 0.5), (0.84, 0.56), (0.97, 0.76)]
    body.polygon(_smooth(upper))
    trim.box(0.05, 0.71, 0.96, 0.8, radius=0.045)
    for step in range(3):
        x, y = 0.4 + 0.07 * step, 0.36 + 0.065 * step
        trim.stroke([(x, y), (x - 0.07, y + 0.1)], 0.028)


def _lamp(body: Stencil, trim: Stencil) -> None:
    trim.box(0.47, 0.5, 0.53, 0.84)
    trim.ellipse(0.28, 0.8, 0.72, 0.93)
    body.polygon([(0.33, 0.1), (0.67, 0.1), (0.88, 0.56), (0.12, 0.56)])
    body.ellipse(0.12, 0.52, 0.88, 0.6)
    trim.ellipse(0.33, 0.08, 0.67, 0.12)


def _chair(body: Stencil, trim: Stencil) -> None:
    for x, foot in ((0.22, 0.16), (0.78, 0.84), (0.33, 0.31), (0.67, 0.69)):
        trim.stroke([(x, 0.62), (foot, 0.95 if foot in (0.16, 0.84) else 0.86)], 0.045)
    trim.box(0.31, 0.4, 0.36, 0.62)
    trim.box(0.64, 0.4, 0.69, 0.62)
    body.box(0.24, 0.06, 0.76, 0.48, radius=0.07)
    body.polygon(_smooth([(0.22, 0.54), (0.78, 0.54), (0.9, 0.7), (0.1, 0.7)], rounds=2))


def _bag(body: Stencil, trim: Stencil) -> None:
    trim.arc((0.3, 0.06, 0.7, 0.6), 180, 360, 0.045)
    body.polygon(_smooth([(0.2, 0.32), (0.8, 0.32), (0.96, 0.92), (0.04, 0.92)], rounds=2))
    trim.box(0.16, 0.46, 0.84, 0.49)
    trim.box(0.44, 0.43, 0.56, 0.56, radius=0.02)


def _vase(body: Stencil, trim: Stencil) -> None:
    heights = np.linspace(0.0, 1.0, 60)
    widths = 0.1 + 0.22 * np.sin(np.pi * heights**0.8) ** 2 + 0.06 * np.exp(-((heights / 0.08) ** 2)) + 0.04 * heights
    right = [(0.5 + float(w), 0.06 + 0.88 * float(h)) for w, h in zip(widths, heights, strict=True)]
    body.polygon(right + [(1 - x, y) for x, y in reversed(right)])
    trim.ellipse(0.35, 0.035, 0.65, 0.095)


def _umbrella(body: Stencil, trim: Stencil) -> None:
    trim.stroke([(0.5, 0.04), (0.5, 0.84)], 0.03)
    trim.arc((0.36, 0.76, 0.53, 0.95), 0, 180, 0.03)
    body.ellipse(0.04, 0.1, 0.96, 1.02)
    body.box(0.0, 0.56, 1.0, 1.05, fill=0)
    for step in range(4):
        body.ellipse(0.04 + 0.23 * step, 0.51, 0.27 + 0.23 * step, 0.61, fill=0)
    for step in (-1, 0, 1):
        curve = [(0.5 + 0.23 * step * math.sin(t), 0.56 - 0.46 * math.cos(t)) for t in np.linspace(0, math.pi / 2, 12)]
        trim.stroke(curve, 0.01)


SILHOUETTES: dict[str, Callable[[Stencil, Stencil], None]] = {
    "mug": _mug,
    "shirt": _shirt,
    "shoe": _shoe,
    "lamp": _lamp,
    "chair": _chair,
    "bag": _bag,
    "vase": _vase,
    "umbrella": _umbrella,
}


def draw_silhouette(category: str, size: int) -> tuple[Image.Image, Image.Image]:
    """Returns the body and trim masks (L, size x size) of a product category."""
    body, trim = Stencil(size), Stencil(size)
    SILHOUETTES[category](body, trim)
    return body.mask, trim.mask
