"""Jagged tensors: lists of different lengths, one after the other."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional


class Jagged(NamedTuple):
    """N lists one after the other."""

    values: torch.Tensor  # int64
    offsets: torch.Tensor  # int64 [N+1]
    weights: torch.Tensor | None = None  # float32, beside the values; see `models.ranking.bags`


def from_arrays(values: np.ndarray, offsets: np.ndarray) -> Jagged:
    """Returns integers [V] and offsets [N+1] as lists; what is int64 is not copied, and must not be written to."""
    return Jagged(*(shared(array.astype(np.int64, copy=False)) for array in (values, offsets)))


def shared(array: np.ndarray) -> torch.Tensor:
    """Returns an array, which may be mapped, as a tensor without a copy, not to be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def gather(source: Jagged, rows: torch.Tensor) -> Jagged:
    """Returns the lists at `rows`, int64 [M]."""
    at, offsets = _within(source.offsets[rows], source.offsets[rows + 1])
    return Jagged(source.values[at], offsets, None if source.weights is None else source.weights[at])


def padded(source: Jagged, *, length: int, fill: int) -> torch.Tensor:
    """Returns the last `length` values of every list as int64 [N, W]; `fill` stands behind shorter ones.

    W is the length of the longest list, at most `length`.

    >>> padded(Jagged(torch.tensor([7, 8, 9]), torch.tensor([0, 1, 3])), length=20, fill=-1)
    tensor([[ 7, -1],
            [ 8,  9]])
    """
    starts, ends = _ends(source, length)
    at = starts[:, None] + torch.arange(int((ends - starts).max()) if len(ends) else 0)
    return _values_or(source, at, at < ends[:, None], fill)


def newest(source: Jagged, *, length: int, fill: int) -> torch.Tensor:
    """The last `length` values of every list, the last one first, as int64 [length, N]; `fill` behind shorter ones.

    >>> newest(Jagged(torch.tensor([7, 8, 9]), torch.tensor([0, 1, 3])), length=2, fill=-1)
    tensor([[ 7,  9],
            [-1,  8]])
    """
    starts, ends = _ends(source, length)
    at = ends - 1 - torch.arange(length)[:, None]
    return _values_or(source, at, at >= starts, fill)


def filled(source: Jagged, fill: int) -> Jagged:
    """Returns the lists with `fill` in the empty ones.

    >>> filled(Jagged(torch.tensor([7, 8]), torch.tensor([0, 0, 2])), fill=-1)[:2]
    (tensor([-1,  7,  8]), tensor([0, 1, 3]))
    """
    empty = source.offsets.diff() == 0
    fills = Jagged(source.values.new_full((int(empty.sum()),), fill), functional.pad(empty.cumsum(0), (1, 0)))
    return joined([source, fills])


def ranges(values: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor) -> Jagged:
    """Returns the values of each range, int64 [M] and [M], as lists."""
    at, offsets = _within(starts, ends)
    return Jagged(values[at], offsets)


def _within(starts: torch.Tensor, ends: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the positions of all ranges one after the other, and the offsets of the ranges in them."""
    lengths = ends - starts
    offsets = functional.pad(lengths.cumsum(0), (1, 0))
    return torch.repeat_interleave(starts - offsets[:-1], lengths) + torch.arange(int(offsets[-1])), offsets


def last(source: Jagged, length: int) -> Jagged:
    """Returns the last `length` values of each list."""
    return ranges(source.values, *_ends(source, length))


def _ends(source: Jagged, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tells where the last `length` values of each list begin and end, int64 [N] each."""
    ends = source.offsets[1:]
    return source.offsets[:-1].maximum(ends - length), ends


def _values_or(source: Jagged, at: torch.Tensor, known: torch.Tensor, fill: int) -> torch.Tensor:
    """Returns the values at places where these are known, else `fill`."""
    return functional.pad(source.values, (0, 1), value=fill)[torch.where(known, at, len(source.values))]


def sliced(source: Jagged, start: int, end: int) -> Jagged:
    """Returns the lists from `start` to `end`, without a copy."""
    offsets = source.offsets[start : end + 1]
    inside = slice(int(offsets[0]), int(offsets[-1]))
    weights = None if source.weights is None else source.weights[inside]
    return Jagged(source.values[inside], offsets - offsets[0], weights)


def chosen(source: Jagged, among: torch.Tensor) -> Jagged:
    """Returns each list without the values that are not chosen; `among` is bool, beside the values."""
    return Jagged(source.values[among], functional.pad(among.cumsum(0), (1, 0))[source.offsets])


def repeated(values: torch.Tensor, count: int) -> Jagged:
    """Returns `count` lists of the same values."""
    return Jagged(values.repeat(count), torch.arange(count + 1) * len(values))


def joined(parts: Sequence[Jagged]) -> Jagged:
    """Concatenates list by list: the first lists of all sources as one, …; weights where every source has them.

    >>> one, two = Jagged(torch.tensor([1, 2, 3]), torch.tensor([0, 2, 3])), repeated(torch.tensor([9]), 2)
    >>> joined([one, two]).values
    tensor([1, 2, 9, 3, 9])
    """
    lengths = torch.stack([part.offsets.diff() for part in parts], dim=1)  # [lists, sources]
    ends = lengths.flatten().cumsum(0).view_as(lengths)
    at = torch.cat([_places(part.offsets, end) for part, end in zip(parts, ends.T, strict=True)])

    values, _, weights = chained(parts)  # as they lie in the sources, from where `at` takes them to the new lists

    def moved(column: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(column).index_copy_(0, at, column)

    offsets = functional.pad(ends[:, -1], (1, 0))
    return Jagged(moved(values), offsets, None if weights is None else moved(weights))


def _places(offsets: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Returns where the values of lists go when list i is to end before position ends[i]."""
    return (ends - offsets[1:]).repeat_interleave(offsets.diff()) + torch.arange(int(offsets[-1]))


def chained(parts: Sequence[Jagged]) -> Jagged:
    """Returns all lists of the first source, then those of the second, …; weights where every source has them."""
    lengths = torch.cat([part.offsets.diff() for part in parts])
    weights = [part.weights for part in parts if part.weights is not None]
    return Jagged(
        torch.cat([part.values for part in parts]),
        functional.pad(lengths.cumsum(0), (1, 0)),
        torch.cat(weights) if len(weights) == len(parts) else None,
    )
