"""Name the pattern and the surface of a picture's subject from the statistics of its texture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from models.captioning.tagger.foreground import erode

EDGES = 0.45  # share of edge pixels below which a surface is plain
FEW = 4  # pieces, from which on something is repeated
STEEP = 2.0  # CIELAB units per pixel, from which on there is an edge
CALM = 6.0  # grey levels per pixel, below which there is none
ROUGH = 5.0  # grey levels, as a standard deviation, from which on there is grain


class Texture(NamedTuple):
    """What the subject's two tones look like.

    Attributes:
        edges: share of pixels at an edge between the tones.
        one_way: mean of the edges' doubled angles: of length 1 if all edges have one direction.
        two_ways: the same of the quadrupled angles: of length 1 also if they have two at a right angle.
        short, long: the pieces of either tone, the one that repeats shorter pieces first.
    """

    edges: float
    one_way: complex
    two_ways: complex
    short: Forms
    long: Forms


class Forms(NamedTuple):
    """Connected pieces of one tone, as ellipses with the same second moments.

    Attributes:
        length: the median ratio of an ellipse's axes.
        pieces: number of pieces.
        fullness: the median ratio of a piece's area to its ellipse's: about 1 for what is round or square.
    """

    length: float
    pieces: int
    fullness: float


def name_pattern(lab: np.ndarray, mask: np.ndarray) -> str:
    """A word or two for the pattern: stripes with their direction, checks, dots, zigzag, busy texture, or plain.

    Edges in one direction are stripes. Of what is left, pieces as long as wide are checks if their edges have two
    directions and dots if they have all; long pieces whose edges turn are zigzag.

    Args:
        lab: CIELAB, float32 [H, W, 3].
        mask: where the subject is, bool [H, W].
    """
    texture = measure_texture(lab, mask)
    if texture is None or texture.edges < EDGES:
        return "plain"
    if abs(texture.one_way) > 0.55:
        return f"{_direction(float(np.angle(texture.one_way)) / 2)} stripes"
    short, long, two_ways = texture.short, texture.long, abs(texture.two_ways)
    if short.length < 1.9 and short.fullness > 0.85:
        if two_ways > 0.2:
            return "checks"
        return "dots" if short.fullness > 0.92 and short.pieces >= FEW else "busy texture"
    turns = long.length > 2.2 and two_ways > 0.12
    return "zigzag" if turns and min(short.pieces, long.pieces) >= FEW else "busy texture"


def measure_texture(lab: np.ndarray, mask: np.ndarray) -> Texture | None:
    """Splits the subject into a light and a dark tone, and measure their edges and pieces; None if it is too small.

    The tone is the projection on the first principal axis of the subject's colours, freed of slow shading. The
    directions are moments of the gradient's angle, as in a structure tensor (Bigun & Granlund 1987).
    """
    core = erode(mask, 2)  # the outline is no pattern
    inner = erode(core, 2)
    if inner.sum() < 100:
        return None
    colours = lab[core]
    axis = np.linalg.eigh(np.cov(colours.T))[1][:, -1].astype(np.float32)
    tone = (lab - colours.mean(axis=0)) @ axis
    fine = _blur(tone, core, 0.013)
    band = fine - _blur(tone, core, 0.11)
    dy, dx = np.gradient(fine)
    gradient = (dx + 1j * dy)[inner]
    edges = np.abs(gradient) > STEEP
    gradient = gradient[edges]
    steep = np.abs(gradient)
    total = steep.sum() + 1e-6
    twice = np.sum(gradient**2 / steep) / total  # weighted by steepness
    fourfold = np.sum(gradient**4 / steep**3) / total
    contrast = 0.25 * band[core].std()
    tones = [_forms(core & (band > contrast)), _forms(core & (band < -contrast))]
    short, long = sorted(tones, key=lambda forms: (forms.pieces < FEW, forms.length))
    return Texture(float(edges.mean()), twice, fourfold, short, long)


def _direction(across: float) -> str:
    """Of stripes, by the angle of the gradient, which lies across them."""
    cosine = abs(np.cos(across))
    return "vertical" if cosine > 0.85 else "horizontal" if cosine < 0.53 else "diagonal"


def _blur(values: np.ndarray, mask: np.ndarray, share: float) -> np.ndarray:
    """Gaussian blur of what lies in the mask alone; the width is a share of the picture's longer side."""
    sigma = share * max(values.shape)
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma, truncate=2.0)
    blurred: np.ndarray = ndimage.gaussian_filter(np.where(mask, values, 0).astype(np.float32), sigma, truncate=2.0)
    return blurred / np.maximum(weight, 1e-3)


def _forms(tone: np.ndarray) -> Forms:
    pieces, _ = ndimage.label(tone)
    y, x = np.nonzero(pieces)
    index = pieces[y, x]
    area = np.bincount(index).astype(np.float64)
    large = np.flatnonzero(area >= 8)
    if not len(large):
        return Forms(9.0, 0, 0.0)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(index, values)[large] / area[large]

    mx, my = mean(x), mean(y)
    xx, yy, xy = mean(x * x) - mx**2 + 1 / 12, mean(y * y) - my**2 + 1 / 12, mean(x * y) - mx * my
    middle, half = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    low, high = np.maximum(middle - half, 1e-3), middle + half
    filled = area[large] / (4 * np.pi * np.sqrt(low * high))
    return Forms(float(np.median(np.sqrt(high / low))), len(large), float(np.median(filled)))


def name_surface(grey: np.ndarray, mask: np.ndarray) -> list[str]:
    """Words for shine and grain, none where the picture shows neither.

    Grain is what a small blur takes away where there is no edge. A weave repeats, so that a few frequencies hold its
    power; single flecks skew its distribution or give it heavy tails; other grain does neither.

    Args:
        grey: lightness in 0-255, float32 [H, W], as finely as the picture has it.
        mask: where the subject is, bool [H, W].
    """
    core = erode(mask, 3)
    smooth = _blur(grey, core, 0.01)
    dy, dx = np.gradient(smooth)
    calm = core & (np.hypot(dx, dy) < CALM)
    if calm.sum() < 100:
        return []
    shine = float((smooth[core] > 235).mean())
    words = ["glossy"] if 0.01 < shine < 0.15 else []
    grain = np.where(calm, grey - smooth, 0.0)
    values = grain[calm]
    spread = float(values.std())
    if spread < ROUGH:
        return [*words, "smooth"] if spread < 0.4 * ROUGH else words
    power = np.abs(np.fft.rfft2(grain)).ravel() ** 2
    if np.partition(power, -8)[-8:].sum() > 0.06 * power.sum():
        return [*words, "woven"]
    skew = float(((values - values.mean()) ** 3).mean()) / spread**3
    return [*words, "speckled" if abs(skew) > 0.7 else "grainy"]
