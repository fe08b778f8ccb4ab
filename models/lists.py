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
    """The last `length` values of every list, as int64 [N, W]; `fill` stands behind shorter ones.

    W is the length of the longest list, at most `length`.

    >>> padded(Lists(torch.tensor([7, 8, 9]), torch.tensor([0, 1, 3])), length=20, fill=-1)
    tensor([[ 7, -1],
            [ 8,  9]])
    """
    ends = source.offsets[1:, None]
    starts = torch.maximum(source.offsets[:-1, None], ends - length)
    at = starts + torch.arange(int((ends - starts).max()) if len(ends) else 0)
    values = torch.cat([source.values, source.values.new_tensor([fill])])
    return values[torch.where(at < ends, at, len(source.values))]
