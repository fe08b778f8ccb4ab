"""Tell a picture's subject from its background, by colour and place alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

FRAME = 0.03  # of the sides: how wide a border speaks for the background
LEAST, MOST = 6.0, 16.0  # CIELAB distance from which on a pixel belongs to the subject: of even and of busy backgrounds
SMALLEST = 0.02  # of the picture: below, nothing stands out and all of it is the subject


class Subject(NamedTuple):
    """Where the subject is.

    Attributes:
        mask: bool [H, W].
        distance: distance of each pixel from the background behind it, in CIELAB, float32 [H, W].
    """

    mask: np.ndarray
    distance: np.ndarray


def find_subject(lab: np.ndarray) -> Subject:
    """Finds what stands out from a background that the picture's border shows.

    The background is a plane in CIELAB over the picture, which allows for uneven light; it is fitted to the border by
    trimmed least squares, which allows for a subject that reaches the border, or clutter. What differs from it is
    closed, filled, and cut into connected parts, of which those near the centre stay.

    Args:
        lab: float32 [H, W, 3].
    """
    height, width = lab.shape[:2]
    y, x = np.meshgrid(
        np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32), indexing="ij"
    )
    plane = np.stack([np.ones_like(x), x, y], axis=-1)
    edge = max(2, round(FRAME * max(height, width)))
    sides: list[Any] = [np.s_[:edge], np.s_[-edge:], np.s_[:, :edge], np.s_[:, -edge:]]
    places = np.concatenate([plane[side].reshape(-1, 3) for side in sides])
    values = np.concatenate([lab[side].reshape(-1, 3) for side in sides])
    away = np.linalg.norm(values - np.median(values, axis=0), axis=-1)
    for _ in range(3):
        inlier = away <= max(2 * np.median(away), 4.0)
        fit = np.linalg.lstsq(places[inlier], values[inlier], rcond=None)[0]
        away = np.linalg.norm(values - places @ fit, axis=-1)
    distance = np.linalg.norm(lab - plane @ fit, axis=-1)
    # Clutter shows at most sides, a subject that is cut off at one or two.
    clutter = np.median([np.quantile(distance[side], 0.9) for side in sides])
    mask = _tidy(distance > np.clip(1.5 * clutter, LEAST, MOST))
    parts, count = ndimage.label(mask)
    if count:
        weight = np.bincount(parts.ravel(), (distance * np.exp(-2 * (x**2 + y**2))).ravel())
        weight[0] = 0
        mask = (weight >= 0.25 * weight.max())[parts]
    if mask.mean() < SMALLEST:
        mask = np.ones_like(mask)
    return Subject(mask, distance)


def erode(mask: np.ndarray, reach: int) -> np.ndarray:
    """What lies more than `reach` pixels, by row and by column, inside a mask; the picture's edge is outside."""
    eroded: np.ndarray = ndimage.minimum_filter(mask, 2 * reach + 1, mode="constant")
    return eroded


def _tidy(mask: np.ndarray) -> np.ndarray:
    """Closes gaps, fill holes, drop specks and threads."""
    reach = max(1, round(0.025 * max(mask.shape)))
    wide = ndimage.maximum_filter(np.pad(mask, reach + 1), 2 * reach + 1)
    filled = ndimage.binary_fill_holes(erode(wide, reach))
    opened: np.ndarray = ndimage.maximum_filter(erode(filled, 1), 3)
    return opened[reach + 1 : -reach - 1, reach + 1 : -reach - 1]
