"""The rows that a quantizer is fitted on, each under a key made of its content.

Everything that a fit draws (its sample, its batches, where dead codes go) it draws by these keys. So the result depends
on the set of vectors and on the seed: not on ids, order of rows, number of workers, or which worker holds which row
(up to the order of floating-point sums).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from models.common.collectives import all_gather_rows
from storage.hashing import hash_rows


class Vectors(NamedTuple):
    """One worker's rows in the order of their keys.

    Attributes:
        values: float32 [n, D].
        keys: uint64 [n], ascending.
        signals: float32 [n, C], what else is known of the rows; NaN where nothing is.
    """

    values: torch.Tensor
    keys: np.ndarray
    signals: torch.Tensor

    def to(self, device: torch.device) -> Vectors:
        """Returns the same rows on a device."""
        return Vectors(self.values.to(device), self.keys, self.signals.to(device))


def collect(batches: Iterable[tuple[np.ndarray, np.ndarray]], *, share: float = 1.0, seed: int = 0) -> Vectors:
    """Holds a stream of vectors, or a share of them: those with the lowest keys.

    Args:
        batches: values float32 [n, D] and signals float32 [n, C], in any order; at least one, which may be empty.
        share: of the rows that are kept, about; equal for all workers.
    """
    limit = np.uint64(min(int(share * 2.0**64), 2**64 - 1))
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    all_keys: list[np.ndarray] = []
    for values, signals in batches:
        keys = mix(hash_rows(values), seed)
        chosen = keys <= limit
        kept.append((values[chosen], signals[chosen]))
        all_keys.append(keys[chosen])
    keys = np.concatenate(all_keys)
    order = np.argsort(keys, kind="stable")
    places = np.argsort(order)
    sorted_values, sorted_signals = (np.empty((len(keys), part.shape[1]), np.float32) for part in kept[0])
    for rows in np.split(places, np.cumsum([len(part) for part in all_keys])[:-1]):
        sorted_values[rows], sorted_signals[rows] = kept.pop(0)  # freed one by one: never more than two copies
    return Vectors(torch.from_numpy(sorted_values), keys[order], torch.from_numpy(sorted_signals))


def mix(keys: np.ndarray, seed: int) -> np.ndarray:
    """Other keys, uint64 [N], for another draw: a bijection of all 64 bits (the finaliser of Stafford's mix 13)."""
    with np.errstate(over="ignore"):
        x = keys + np.uint64(0x9E3779B97F4A7C15) * np.uint64(2 * seed + 1)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> np.uint64(31)))


def uniform(keys: np.ndarray, seed: int) -> torch.Tensor:
    """Returns one number in (0, 1] per key, float64 [N], the same wherever the row is held."""
    return torch.from_numpy(((mix(keys, seed) >> np.uint64(11)) + np.uint64(1)) * 2.0**-53)


def lowest(values: torch.Tensor, scores: torch.Tensor, count: int) -> torch.Tensor:
    """Returns the rows of all workers with the lowest scores, in the order of these.

    Args:
        values: float [n, D].
        scores: float64 [n].

    Returns:
        Float [min(count, rows of all workers), D].
    """
    scores, order = scores.sort(stable=True)
    rows = order[:count].to(values.device)
    candidates, merged = all_gather_rows(values[rows]), all_gather_rows(scores[:count].to(values.device))
    return candidates[merged.sort(stable=True).indices[:count]]


def draw(values: torch.Tensor, weights: torch.Tensor, count: int, *, keys: np.ndarray, seed: int) -> torch.Tensor:
    """Rows of all workers, drawn in proportion to their weights without replacement.

    The row with the first of exponential clocks comes first (Efraimidis and Spirakis 2006).
    """
    clocks = -uniform(keys, seed).log() / weights.double().cpu().clamp_min(1e-30)
    return lowest(values, clocks, count)
