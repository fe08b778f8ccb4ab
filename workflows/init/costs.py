"""About how long the stages take: constants of one machine (two cores of an Intel Xeon, no GPU), without its noise.

They come from `benchmarks/RESULTS.md`, "Seconds per stage", and from runs of definitions that `tesserec init` wrote.
Decoders are bound by multiplications, so a step costs what its positions and the catalogue's size say.
"""

from __future__ import annotations

CPUS = 2  # of that machine
STREAM_START, FIT_START = 40.0, 20.0  # seconds until the first row of interpret, or the first step of a fit
PICTURE, CLIP, TEXT = 0.12, 1.5, 0.006  # CPU seconds to interpret an item with a picture, with a video, with text alone
FLOPS = 5e10  # per second, of a small decoder
QUERY = 0.015  # seconds of a beam search
RANKED = 12_000  # rows per second that the ranker is fitted on, validation with it


def interpret(items: int, pictures: int, clips: int, cpus: int) -> float:
    """Seconds of interpret."""
    work = PICTURE * pictures + CLIP * clips + TEXT * (items - pictures - clips)
    return STREAM_START + work / cpus


def quantize(items: int, steps: int) -> float:
    """Seconds of quantize; without steps that of k-means."""
    return FIT_START + 15 + (0.03 * steps if steps else 2e-4 * items)


def rank(rows: int, epochs: int) -> float:
    """Seconds of rank, as it mostly ends before the last epoch."""
    return FIT_START + 0.7 * epochs * rows / RANKED


def step_of_items(positions: float, items: int, *, wide: int = 1) -> float:
    """Seconds of a step of a next-item model over whole items, for `positions` of histories; `wide` codes."""
    return 0.01 + positions * (6e5 * wide + 400 * items) / FLOPS


def step_of_tokens(tokens: float, layers: int) -> float:
    """Seconds of a step of the tiny language model."""
    return 0.03 + 3e-5 * tokens * layers
