"""Colours and their names: CIELAB, and the nearest of a closed list of colour words."""

from __future__ import annotations

import functools

import numpy as np

# Names and sRGB of basic colour terms (Berlin & Kay 1969) and the few that catalogues add, in several shades each.
COLOURS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "black": ((15, 15, 15), (40, 40, 40), (58, 56, 56)),
    "grey": ((100, 100, 100), (130, 130, 130), (165, 165, 165)),
    "white": ((250, 250, 250), (210, 210, 210)),
    "red": ((210, 30, 40), (150, 20, 25), (110, 25, 35), (225, 70, 70)),
    "orange": ((240, 130, 30), (225, 105, 20), (245, 150, 80)),
    "yellow": ((245, 215, 50), (225, 190, 40), (245, 235, 120)),
    "green": ((45, 155, 65), (25, 90, 40), (120, 190, 90), (85, 100, 50), (190, 225, 70)),
    "teal": ((25, 145, 145), (60, 190, 190), (20, 95, 100)),
    "blue": ((40, 85, 200), (20, 40, 110), (110, 160, 230), (40, 48, 72), (85, 110, 150), (175, 205, 235)),
    "purple": ((125, 55, 165), (85, 35, 115), (170, 120, 205), (90, 60, 100)),
    "pink": ((240, 130, 175), (235, 180, 200), (220, 50, 130), (250, 160, 150)),
    "brown": ((125, 80, 45), (85, 55, 30), (70, 48, 42), (150, 105, 75)),
    "beige": ((220, 200, 165), (235, 222, 195), (190, 165, 130)),
}
NAMES = tuple(COLOURS)

_OWNERS = np.array([index for index, shades in enumerate(COLOURS.values()) for _ in shades])
_SRGB = np.arange(256, dtype=np.float32) / 255
_LINEAR = np.where(_SRGB > 0.04045, ((_SRGB + 0.055) / 1.055) ** 2.4, _SRGB / 12.92)  # light of each byte
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_TO_XYZ = (_TO_XYZ / np.array([[0.9505], [1.0], [1.089]])).T.astype(np.float32)  # over the white of D65
_BITS = 5  # of each channel, that a pixel's name is looked up by


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB, uint8 [..., 3], to CIELAB under D65, float32 [..., 3], where distance follows perception (CIE 15:2004)."""
    xyz = _LINEAR[rgb] @ _TO_XYZ
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def name_colours(rgb: np.ndarray) -> np.ndarray:
    """Indexes into `NAMES` of the shade that is nearest in CIELAB, int64 [...], of sRGB pixels, uint8 [..., 3]."""
    red, green, blue = np.moveaxis(rgb >> (8 - _BITS), -1, 0).astype(np.intp)
    return _names()[red, green, blue]


@functools.cache
def _names() -> np.ndarray:
    steps = ((np.arange(1 << _BITS) << (8 - _BITS)) + (1 << (7 - _BITS))).astype(np.uint8)
    grid = to_lab(np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1))
    shades = to_lab(np.array([shade for shades in COLOURS.values() for shade in shades], np.uint8))
    squares = [((grid - shade) ** 2).sum(-1) for shade in shades]
    return _OWNERS[np.argmin(squares, axis=0)]
