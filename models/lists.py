"""Lists of different lengths, one after the other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional


class Lists(NamedTuple):
    """N lists one after the other."""

    values: torch.Tensor  # int64
    offsets: torch.Tensor  # int64 [N+1]
    weights: torch.Tensor | None = None  # float32, beside the values; see `models.ranking.bags`


def gather(source: Lists, rows: torch.Tensor) -> Lists:
    """The lists at `rows`, int64 [M]."""
    starts = source.offsets[rows]
    lengths = source.offsets[rows + 1] - starts
    ends = functional.pad(lengths.cumsum(0), (1, 0))
    at = torch.repeat_interleave(starts - ends[:-1], lengths) + torch.arange(int(ends[-1]))
    return Lists(source.values[at], ends, None if source.weights is None else source.weights[at])


def padded(source: Lists, *, length: int, fill: int) -> torch.Tensor:
    """The last `length` values of every list, aligned right, as int64 [N, W]; `fill` stands before shorter ones.

    W is the length of the longest list, at most `length`.

    >>> padded(Lists(torch.tensor([7, 8, 9]), torch.tensor([0, 1, 3])), length=20, fill=-1)
    tensor([[-1,  7],
            [ 8,  9]])
    """
    lengths = source.offsets.diff()
    width = min(length, int(lengths.max())) if len(lengths) else 0
    at = source.offsets[1:, None] - width + torch.arange(width)
    missing = at < source.offsets[:-1, None]
    return source.values[at.clamp_min(0)].masked_fill(missing, fill) if width else at
