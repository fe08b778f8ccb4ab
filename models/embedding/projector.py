"""From raw image and text vectors to one embedding: standardise, weight, concatenate, PCA; fitted once, then frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from storage.artifacts import load_model, save_model
from storage.errors import UserError

Blocks = tuple[np.ndarray, np.ndarray]  # values float32 [N, D] with zeros in missing rows, known bool [N]


@dataclass(frozen=True)
class Projector:
    """A frozen projection; a part that an item lacks counts as the catalogue's mean.

    Attributes:
        means, scales: per block float32 [D_b]; the scale is weight / (standard deviation * sqrt(D_b)).
        components: float32 [sum of D_b, width], principal axes, scaled to a mean variance of one per output.
        explained: share of the variance that the width keeps.
    """

    names: tuple[str, ...]
    means: tuple[np.ndarray, ...]
    scales: tuple[np.ndarray, ...]
    components: np.ndarray
    explained: float

    def transform(self, blocks: list[Blocks]) -> np.ndarray:
        """Projects one batch, a block for each name, to float32 [N, width]; each row as if it were alone."""
        values = _standardise(blocks, self.means, self.scales)
        # in double precision what the size of a batch changes is lost in rounding
        return (values.astype(np.float64) @ self.components).astype(np.float32)

    def save(self, uri: str) -> None:
        """Writes the artifact."""
        tensors = {"components": torch.from_numpy(self.components)}
        for name, mean, scale in zip(self.names, self.means, self.scales, strict=True):
            tensors |= {f"mean.{name}": torch.from_numpy(mean), f"scale.{name}": torch.from_numpy(scale)}
        config = {"blocks": list(self.names), "width": self.components.shape[1], "explained": self.explained}
        save_model(uri, "projector", config, tensors)

    @staticmethod
    def load(uri: str) -> Projector:
        """Reads the artifact; raises UserError as `storage.artifacts.load_model` does."""
        config, tensors = load_model(uri, "projector")
        names = tuple(config["blocks"])
        return Projector(
            names,
            tuple(tensors[f"mean.{name}"].numpy() for name in names),
            tuple(tensors[f"scale.{name}"].numpy() for name in names),
            tensors["components"].numpy(),
            config["explained"],
        )


def fit_projector(batches: Callable[[], Iterable[list[Blocks]]], weights: dict[str, float], width: int) -> Projector:
    """Fits in two passes over the data, holding one batch and one covariance matrix.

    Args:
        batches: starts a pass; every pass must yield the same batches in the same order.
        weights: weight of each block, by name, in the order of the blocks. A block of any width contributes variance
            weight², so that 1,280 image dimensions do not drown 384 of text.
        width: components of the embedding; fewer where the vectors have less.

    Raises:
        UserError: no block has a positive weight.
    """
    if not any(weight > 0 for weight in weights.values()):
        raise UserError("All weights of the projection are zero: give at least one of them a positive value.")
    means, deviations = _moments(batches)
    scales = tuple(
        np.where(deviation > 1e-6, weight / (np.maximum(deviation, 1e-6) * np.sqrt(len(deviation))), 0.0).astype(
            np.float32
        )
        for deviation, weight in zip(deviations, weights.values(), strict=True)
    )
    size = sum(len(mean) for mean in means)
    covariance, rows = np.zeros((size, size)), 0
    for blocks in batches():
        values = _standardise(blocks, means, scales).astype(np.float64)
        covariance += values.T @ values
        rows += len(values)
    with threadpool_limits(1):  # several threads add up in another order, and slow each other down on a busy machine
        variances, axes = np.linalg.eigh(covariance / max(rows, 1))
    variances, axes = np.maximum(variances[::-1], 0.0), axes[:, ::-1]
    axes *= np.where(axes[np.abs(axes).argmax(0), np.arange(size)] < 0, -1.0, 1.0)  # one sign, whatever LAPACK chose
    width = min(width, size)
    gain = np.sqrt(width / max(float(variances[:width].sum()), 1e-12))
    components = np.ascontiguousarray(axes[:, :width] * gain, dtype=np.float32)
    explained = float(variances[:width].sum() / max(float(variances.sum()), 1e-12))
    return Projector(tuple(weights), means, scales, components, explained)


def _moments(batches: Callable[[], Iterable[list[Blocks]]]) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Means float32 and standard deviations float64 [D_b] of the known rows of each block."""
    sums: list[tuple[Any, Any, int]] = []
    for blocks in batches():
        known_rows = [values[known].astype(np.float64) for values, known in blocks]
        sums = [
            (total + rows.sum(0), squares + (rows**2).sum(0), count + len(rows))
            for rows, (total, squares, count) in zip(known_rows, sums or [(0.0, 0.0, 0)] * len(blocks), strict=True)
        ]
    means = [total / max(count, 1) for total, _, count in sums]
    squares = [squares / max(count, 1) for _, squares, count in sums]
    deviations = (np.sqrt(np.maximum(square - mean**2, 0.0)) for square, mean in zip(squares, means, strict=True))
    return tuple(mean.astype(np.float32) for mean in means), tuple(deviations)


def _standardise(blocks: list[Blocks], means: tuple[np.ndarray, ...], scales: tuple[np.ndarray, ...]) -> np.ndarray:
    parts = [
        np.where(known[:, None], (values - mean) * scale, np.float32(0.0))
        for (values, known), mean, scale in zip(blocks, means, scales, strict=True)
    ]
    return np.concatenate(parts, axis=1)
