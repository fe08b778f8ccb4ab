"""Other views of a product photo: mirrored, cut closer, turned a little, lighter or darker; its colours stay."""

from __future__ import annotations

import numpy as np
import xxhash
from PIL import Image, ImageEnhance

CLOSEST = 0.75  # share of each side that a cut keeps, at least
DEGREES = 8.0
LIGHT = 0.15


def views(picture: np.ndarray, count: int) -> list[np.ndarray]:
    """Returns so many views of a picture (uint8 [H, W, 3]), itself first; the pixels decide the others."""
    rng = np.random.default_rng(xxhash.xxh3_64_intdigest(np.ascontiguousarray(picture).tobytes()))
    return [picture, *(_view(picture, rng) for _ in range(count - 1))]


def _view(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    image = Image.fromarray(picture)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    edge = tuple(np.median(np.concatenate([picture[0], picture[-1]]), axis=0).astype(int).tolist())
    image = image.rotate(rng.uniform(-DEGREES, DEGREES), Image.Resampling.BILINEAR, fillcolor=edge)
    width, height = (max(1, round(side * rng.uniform(CLOSEST, 1.0))) for side in image.size)
    left, top = (
        int(rng.integers(0, whole - part + 1)) for whole, part in zip(image.size, (width, height), strict=True)
    )
    image = image.crop((left, top, left + width, top + height))
    return np.asarray(ImageEnhance.Brightness(image).enhance(1 + rng.uniform(-LIGHT, LIGHT)))
