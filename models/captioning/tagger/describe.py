"""A captioner without a language model: ImageNet labels, named colours, shape, pattern and light, as one sentence.

It sees what a small classifier and some image statistics can see. Every word it may use comes from a closed list, so
its captions make a small, dense vocabulary for the ranker.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from models.captioning.tagger.foreground import Subject, find_subject
from models.captioning.tagger.patterns import name_pattern, name_surface
from models.common.colours import NAMES, name_colours, to_lab

SIDE = 96  # the longer side at which pictures are judged
PATTERN_SIDE, SURFACE_SIDE = 96, 144  # and at which patterns and surfaces of what was cut out of them
LABEL_THRESHOLD = 0.15
SECOND = 0.2  # share from which on a second colour is named


def describe(picture: np.ndarray, probabilities: np.ndarray, labels: list[str]) -> str:
    """Returns one sentence about a picture.

    Args:
        picture: uint8 [H, W, 3].
        probabilities: ImageNet class probabilities, float [1000].
        labels: the classes' names.
    """
    small = _resize(picture, SIDE / max(picture.shape))
    lab = to_lab(small)
    subject = find_subject(lab)
    named = [labels[i] for i in np.argsort(-probabilities)[:2] if probabilities[i] >= LABEL_THRESHOLD]
    what = " or ".join(named) if named else "something"
    colours = " and ".join(_colours(small, subject))
    coarse, fine = (_cut_out(picture, subject.mask, side) for side in (PATTERN_SIDE, SURFACE_SIDE))
    words = [_shape(subject.mask), name_pattern(to_lab(coarse[0]), coarse[1]), _light(lab[subject.mask])]
    words += name_surface(_grey(fine[0]), fine[1])
    return f"A picture of {what}, mainly {colours}{_background(small, subject.mask)}: {', '.join(words)}."


def _resize(picture: np.ndarray, scale: float) -> np.ndarray:
    size = [max(16, round(side * scale)) for side in picture.shape[1::-1]]
    way = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(picture).resize(size, way))


def _colours(small: np.ndarray, subject: Subject) -> list[str]:
    """The most frequent name, and the next one if it is frequent; what differs from the background counts more."""
    y, x = np.nonzero(subject.mask)
    height, width = subject.mask.shape
    place = np.exp(-1.5 * ((2 * x / width - 1) ** 2 + (2 * y / height - 1) ** 2))
    weight = place * np.clip(subject.distance[y, x] / 45.0, 0.05, 1.0)
    shares = np.bincount(name_colours(small[y, x]), weight, len(NAMES)) / weight.sum()
    first, second = np.argsort(-shares, kind="stable")[:2]
    return [NAMES[first], NAMES[second]] if shares[second] >= SECOND else [NAMES[first]]


def _background(small: np.ndarray, mask: np.ndarray) -> str:
    if mask.all():
        return ""
    return f", on a {NAMES[np.bincount(name_colours(small[~mask])).argmax()]} background"


def _shape(subject: np.ndarray) -> str:
    (box,) = ndimage.find_objects(subject.astype(int))
    (height, width), fill = subject[box].shape, float(subject[box].mean())
    proportion = "tall" if height > 1.25 * width else "wide" if width > 1.25 * height else "even"
    outline = "blocky" if fill > 0.88 else "rounded" if fill > 0.7 else "tapered" if fill > 0.45 else "spindly"
    return f"{proportion} {outline} shape"


def _light(lab: np.ndarray) -> str:
    lightness, chroma = float(lab[:, 0].mean()), float(np.hypot(lab[:, 1], lab[:, 2]).mean())
    tone = "dark" if lightness < 35 else "light" if lightness > 72 else "medium"
    return f"{tone} {'vivid' if chroma > 45 else 'muted' if chroma < 18 else 'soft'}"


def _cut_out(picture: np.ndarray, mask: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the box around the subject, its longer side that many pixels, and the mask in it."""
    (small,) = ndimage.find_objects(mask.astype(int))
    scales = [large / little for large, little in zip(picture.shape, mask.shape, strict=False)]
    ends = [(int(part.start * scale), int(part.stop * scale)) for part, scale in zip(small, scales, strict=True)]
    box = picture[tuple(slice(start, max(stop, start + 1)) for start, stop in ends)]
    cut = _resize(box, side / max(box.shape))
    inside = Image.fromarray(mask[small]).resize(cut.shape[1::-1], Image.Resampling.NEAREST)
    return cut, np.asarray(inside)


def _grey(rgb: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(rgb).convert("L"), np.float32)
