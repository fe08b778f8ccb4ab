"""About how long the stages take: constants of one machine (two cores of an Intel Xeon, no GPU), without its noise.

They come from `benchmarks/RESULTS.md`, "Seconds per stage" and "The next item", and from CPU seconds of the operators
of interpret. The steps of a fit cost what its positions and the catalogue's size say, times the `pace` of this machine.
"""

from __future__ import annotations

import time

import torch

from models.common.devices import dtype_of, own_device

RAY_START = 15.0
STREAM_START, FIT_START = 25.0, 20.0  # seconds until the first row of interpret, or the first step of a fit
PICTURE, CLIP, TEXT = 0.12, 0.4, 0.009  # CPU seconds to interpret an item with a picture, with a video, with text alone
# Matrix products that the fits of the constants came to per second: a machine of 1.1e11 took twice as long for them.
PRODUCTS = 2.2e11
SIDE, TRIES = 768, 8  # of the matrices that are multiplied to find out
FLOPS = 5e10  # per second, of SASRec
CODED = 3.5e-5  # seconds per position of a small recommender by product codes
RANKED = 12_000  # rows per second that the ranker is fitted on, validation with it


def pace() -> float:
    """Returns how many times as long as the constants say fits take here, 1 at least, from a few matrix products.

    Fits compute in bfloat16 where the hardware does, which is most of what machines differ by.
    """
    device = own_device()
    matrix = torch.rand(SIDE, SIDE).to(device, dtype_of("bf16", device))
    least = float("inf")
    for _ in range(TRIES):
        began = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        least = min(least, time.perf_counter() - began)
    return max(1.0, PRODUCTS * least / (2 * SIDE**3))


def interpret(items: int, pictures: int, clips: int, cpus: int) -> float:
    """Seconds of interpret; the rest of the items have text alone."""
    work = PICTURE * pictures + CLIP * clips + TEXT * (items - pictures - clips)
    return STREAM_START + work / cpus


def quantize(items: int, steps: int) -> float:
    """Seconds of quantize; without steps those of k-means."""
    return FIT_START + 15 + (0.03 * steps if steps else 2e-4 * items)


def rank(rows: int, epochs: int) -> float:
    """Seconds of rank, which mostly ends before the last epoch."""
    return FIT_START + 0.7 * epochs * rows / RANKED


def item_knn(events: int, items: int) -> float:
    """Seconds to count what users chose together."""
    return 1.2e-8 * events * items


def sasrec_step(positions: float, items: int) -> float:
    """Seconds of a step over so many positions of histories."""
    return 0.01 + positions * (6e5 + 400 * items) / FLOPS


def product_codes_step(positions: float, *, large: bool) -> float:
    """Seconds of a step; a large model has twice the width and twice the codes."""
    return 0.01 + positions * CODED * (5 if large else 1)


def language_model_step(tokens: float, layers: int) -> float:
    """Seconds of a step of a tiny decoder."""
    return 0.03 + 3e-5 * tokens * layers


def searches(queries: int, layers: int) -> float:
    """Seconds of so many beam searches by a tiny decoder, twenty beams each."""
    return 0.005 * layers * queries


def validation(queries: int, items: int) -> float:
    """Seconds to list the best items for so many histories by a model that scores all of them."""
    return queries * (2e-4 + 2e-8 * items)
