"""Pictures in whose features a colour and a thing are planted, and what there is to say of them."""

from __future__ import annotations

import numpy as np
import torch

from models.qformer.model import CaptionModel
from models.qformer.training import Pictures
from models.qformer.vision import WIDTH
from tests.models.qformer.conftest import COLOURS, THINGS


def planted(
    model: CaptionModel, count: int, *, views: int = 2, silent: int | None = None
) -> tuple[Pictures, list[str]]:
    """Return pictures, each fourth held out, and their captions; of each `silent`-th the text names the thing alone."""
    rng = np.random.default_rng(0)
    marks = rng.normal(size=(len(COLOURS) + len(THINGS), WIDTH))
    colours, things = rng.integers(0, len(COLOURS), count), rng.integers(0, len(THINGS), count)
    plain = np.repeat(marks[colours] + marks[len(COLOURS) + things], views, axis=0)
    captions = [f"{COLOURS[colour]} {THINGS[thing]}" for colour, thing in zip(colours, things, strict=True)]
    texts = [text for caption in captions for text in (caption, f"a {caption}")]
    places = torch.arange(count)
    whole = places % silent > 0 if silent else torch.ones(count, dtype=torch.bool)
    said = [text if full else text.split()[-1] for text, full in zip(captions, whole, strict=True)]
    data = Pictures(
        features=(plain + rng.normal(size=plain.shape) / 4).astype(np.float16),
        rows=places * views,
        views=views,
        texts=model.encode(texts),
        ends=torch.arange(0, 2 * count + 1, 2),
        captions=model.decoder.encode(said),
        whole=whole,
        train=places[places % 4 > 0],
        valid=places[places % 4 == 0],
    )
    return data, captions
