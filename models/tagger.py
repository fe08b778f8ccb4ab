"""A captioner without a language model: ImageNet labels, named colours, shape, pattern and light, as one sentence.

It sees what a small classifier and some image statistics can see. Every word it may use comes from a closed list, so
its captions make a small, dense vocabulary for the ranker.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from PIL import Image

SIDE = 96  # pictures are judged at this size
LABEL_THRESHOLD = 0.15
# Names and sRGB of basic colour terms (Berlin & Kay 1969) and the few that catalogues add, some with several shades.
COLOURS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "black": ((15, 15, 15), (40, 40, 40)),
    "grey": ((110, 110, 110), (160, 160, 160)),
    "white": ((250, 250, 250), (225, 225, 225)),
    "red": ((210, 30, 40), (150, 20, 25)),
    "orange": ((240, 130, 30), (225, 105, 20)),
    "yellow": ((245, 215, 50), (225, 190, 40)),
    "green": ((45, 155, 65), (25, 90, 40), (120, 190, 90)),
    "teal": ((25, 145, 145), (60, 190, 190)),
    "blue": ((40, 85, 200), (20, 40, 110), (110, 160, 230)),
    "purple": ((125, 55, 165), (85, 35, 115), (170, 120, 205)),
    "pink": ((240, 130, 175), (235, 180, 200)),
    "brown": ((125, 80, 45), (85, 55, 30)),
    "beige": ((220, 200, 165), (235, 222, 195)),
}
_NAMES = [name for name, shades in COLOURS.items() for _ in shades]


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB in 0–255 [..., 3] to CIELAB under D65 [..., 3], where distance follows perception (CIE 15:2004)."""
    linear = np.asarray(rgb, np.float32) / 255.0
    linear = np.where(linear > 0.04045, ((linear + 0.055) / 1.055) ** 2.4, linear / 12.92)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32)
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089], np.float32)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


_PALETTE = to_lab(np.array([shade for shades in COLOURS.values() for shade in shades]))


def name_colours(lab: np.ndarray) -> np.ndarray:
    """Index of the nearest palette entry for CIELAB pixels [N, 3] -> int64 [N]."""
    return np.argmin(((lab[:, None, :] - _PALETTE[None]) ** 2).sum(-1), axis=1)


def describe(picture: np.ndarray, probabilities: np.ndarray, labels: list[str]) -> str:
    """One sentence about a picture.

    Args:
        picture: uint8 [H, W, 3].
        probabilities: ImageNet class probabilities, float [1000].
        labels: the classes' names.
    """
    small = np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX))
    lab = to_lab(small)
    background = np.median(np.concatenate([lab[:4].reshape(-1, 3), lab[-4:].reshape(-1, 3)]), axis=0)
    distance = np.linalg.norm(lab - background, axis=-1)
    subject = distance > 18.0
    if subject.mean() < 0.02:
        subject = np.ones_like(subject)
    colours = _ranked_colours(lab[subject])
    top = np.argsort(-probabilities)[:2]
    named = [labels[i] for i in top if probabilities[i] >= LABEL_THRESHOLD]
    what = " or ".join(named) if named else "something"
    ground = _NAMES[int(name_colours(background[None])[0])]
    words = [_shape(subject), _pattern(lab, subject), _light(lab[subject])]
    words += _surface(small, subject)
    return f"A picture of {what}, mainly {' and '.join(colours)}, on a {ground} background: {', '.join(words)}."


def _ranked_colours(lab: np.ndarray) -> list[str]:
    counts: dict[str, int] = {}
    for index, count in zip(*np.unique(name_colours(lab), return_counts=True), strict=True):
        counts[_NAMES[index]] = counts.get(_NAMES[index], 0) + int(count)
    ranked = sorted(counts, key=lambda name: (-counts[name], name))
    return [name for name in ranked[:2] if counts[name] >= 0.2 * len(lab)] or ranked[:1]


def _shape(subject: np.ndarray) -> str:
    rows, columns = np.flatnonzero(subject.any(1)), np.flatnonzero(subject.any(0))
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    fill = float(subject[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean())
    proportion = "tall" if height > 1.25 * width else "wide" if width > 1.25 * height else "even"
    outline = "blocky" if fill > 0.88 else "rounded" if fill > 0.7 else "tapered" if fill > 0.45 else "spindly"
    return f"{proportion} {outline} shape"


def _pattern(lab: np.ndarray, subject: np.ndarray) -> str:
    """Stripes have gradients along one direction, checks along two, dots along all."""
    light = np.where(subject, lab[..., 0], lab[..., 0][subject].mean())
    dy, dx = np.gradient(light)
    inner = torch.from_numpy(subject[None, None].astype(np.float32))
    inside = -F.max_pool2d(-inner, 5, stride=1, padding=2)[0, 0].numpy() > 0.5  # eroded: the outline is no pattern
    if inside.sum() < 50:
        return "plain"
    gx, gy = dx[inside], dy[inside]
    energy = np.hypot(gx, gy)
    busy = float((energy > 4.0).mean())
    if busy < 0.12:
        return "plain"
    angle = np.arctan2(gy, gx)
    weight = energy / energy.sum()
    one_way = abs(np.sum(weight * np.exp(2j * angle)))
    two_way = abs(np.sum(weight * np.exp(4j * angle)))
    if one_way > 0.55:
        across = np.angle(np.sum(weight * np.exp(2j * angle))) / 2
        return (
            "vertical stripes"
            if abs(np.cos(across)) > 0.9
            else "horizontal stripes"
            if abs(np.cos(across)) < 0.45
            else "diagonal stripes"
        )
    if two_way > 0.45:
        return "checks"
    return "dots" if busy < 0.45 else "busy texture"


def _light(lab: np.ndarray) -> str:
    lightness, chroma = float(lab[:, 0].mean()), float(np.hypot(lab[:, 1], lab[:, 2]).mean())
    tone = "dark" if lightness < 35 else "light" if lightness > 72 else "medium"
    return f"{tone} {'vivid' if chroma > 45 else 'muted' if chroma < 18 else 'soft'}"


def _surface(small: np.ndarray, subject: np.ndarray) -> list[str]:
    grey = small.mean(-1)
    fine = np.abs(grey - F.avg_pool2d(torch.tensor(grey)[None, None], 3, 1, 1)[0, 0].numpy())[subject].mean()
    shine = float((small[subject].min(-1) > 235).mean())
    return (["glossy"] if 0.01 < shine < 0.15 else []) + (
        ["grainy"] if fine > 6.0 else ["smooth"] if fine < 2.0 else []
    )
