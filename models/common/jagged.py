"""Jagged tensors: lists of different lengths, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional


class Jagged(NamedTuple):
    """N lists one after the other."""

    values: torch.Tensor  # int64
    offsets: torch.Tensor  # int64 [N+1]
    weights: torch.Tensor | None = None  # float32, beside the values; see `models.ranking.bags`


def gather(source: Jagged, rows: torch.Tensor) -> Jagged:
    """Return the lists at `rows`, int64 [M]."""
    at, offsets = _within(source.offsets[rows], source.offsets[rows + 1])
    return Jagged(source.values[at], offsets, None if source.weights is None else source.weights[at])


def padded(source: Jagged, *, length: int, fill: int) -> torch.Tensor:
    """Return the last `length` values of every list as int64 [N, W]; `fill` stands behind shorter ones.

    W is the length of the longest list, at most `length`.

    >>> padded(Jagged(torch.tensor([7, 8, 9]), torch.tensor([0, 1, 3])), length=20, fill=-1)
    tensor([[ 7, -1],
            [ 8,  9]])
    """
    ends = source.offsets[1:, None]
    starts = torch.maximum(source.offsets[:-1, None], ends - length)
    at = starts + torch.arange(int((ends - starts).max()) if len(ends) else 0)
    values = torch.cat([source.values, source.values.new_tensor([fill])])
    return values[torch.where(at < ends, at, len(source.values))]


def ranges(values: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor) -> Jagged:
    """Return the values of each range, int64 [M] and [M], as lists."""
    at, offsets = _within(starts, ends)
    return Jagged(values[at], offsets)


def _within(starts: torch.Tensor, ends: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions of all ranges one after the other, and the offsets of the ranges in them."""
    lengths = ends - starts
    offsets = functional.pad(lengths.cumsum(0), (1, 0))
    return torch.repeat_interleave(starts - offsets[:-1], lengths) + torch.arange(int(offsets[-1])), offsets


def last(source: Jagged, length: int) -> Jagged:
    """Return the last `length` values of each list."""
    starts, ends = source.offsets[:-1], source.offsets[1:]
    return ranges(source.values, starts.maximum(ends - length), ends)


def chosen(source: Jagged, among: torch.Tensor) -> Jagged:
    """Return each list without the values that are not chosen; `among` is bool, beside the values."""
    return Jagged(source.values[among], functional.pad(among.cumsum(0), (1, 0))[source.offsets])


def repeated(values: torch.Tensor, count: int) -> Jagged:
    """Return `count` lists of the same values."""
    return Jagged(values.repeat(count), torch.arange(count + 1) * len(values))


def joined(parts: Sequence[Jagged]) -> Jagged:
    """Concatenate list by list: the first lists of all sources as one, …; weights where every source has them.

    >>> one, two = Jagged(torch.tensor([1, 2, 3]), torch.tensor([0, 2, 3])), repeated(torch.tensor([9]), 2)
    >>> joined([one, two]).values
    tensor([1, 2, 9, 3, 9])
    """
    lengths = torch.stack([part.offsets.diff() for part in parts], dim=1)  # [lists, sources]
    ends = lengths.flatten().cumsum(0).view_as(lengths)
    at = torch.cat([_places(part.offsets, end) for part, end in zip(parts, ends.T, strict=True)])

    def merged(columns: Sequence[torch.Tensor]) -> torch.Tensor:
        column = torch.cat(list(columns))
        return torch.empty_like(column).index_copy_(0, at, column)

    weights = [part.weights for part in parts if part.weights is not None]
    return Jagged(
        merged([part.values for part in parts]),
        functional.pad(ends[:, -1], (1, 0)),
        merged(weights) if len(weights) == len(parts) else None,
    )


def _places(offsets: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Return where the values of lists go when list i is to end before position ends[i]."""
    return (ends - offsets[1:]).repeat_interleave(offsets.diff()) + torch.arange(int(offsets[-1]))


def chained(parts: Sequence[Jagged]) -> Jagged:
    """Return all lists of the first source, then those of the second, …; weights where every source has them."""
    lengths = torch.cat([part.offsets.diff() for part in parts])
    weights = [part.weights for part in parts if part.weights is not None]
    return Jagged(
        torch.cat([part.values for part in parts]),
        functional.pad(lengths.cumsum(0), (1, 0)),
        torch.cat(weights) if len(weights) == len(parts) else None,
    )
