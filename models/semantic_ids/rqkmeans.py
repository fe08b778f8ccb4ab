"""Residual k-means: one k-means per level, on what the levels before it left over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import nn

from models.common.collectives import all_reduce_sum
from models.semantic_ids.kmeans import BLOCK_ROWS, balance, kmeans, nearest
from models.semantic_ids.quantizer import Architecture, Quantizer
from models.semantic_ids.training_rows import Vectors

State = dict[str, torch.Tensor]
SHRINKAGE = 0.1  # of the variances towards their mean before whitening


def fit_rqkmeans(
    vectors: Vectors,
    architecture: Architecture,
    *,
    seed: int,
    balanced: bool = False,
    report: Callable[[dict[str, float], Callable[[], State]], None] = lambda metrics, snapshot: None,
    state: State | None = None,
) -> Quantizer:
    """Fits on the rows of all workers.

    Args:
        vectors: this worker's rows.
        balanced: give all codewords of a level about equally many rows; see `kmeans.balance`.
        report: called after every level, on every worker, with the level and what is left of the variance, and with
            what takes a snapshot of the state to go on from.
        state: of an earlier attempt.
    """
    quantizer = Quantizer(architecture).to(vectors.values.device)
    set_statistics(quantizer, vectors)
    done = 0
    if state is not None:
        done = int(state["level"])
        quantizer.load_state_dict({name: tensor for name, tensor in state.items() if name != "level"})
    residual = quantizer.inputs(vectors.values)
    for level, (codebook, offsets) in enumerate(zip(quantizer.codebooks, quantizer.level_offsets, strict=True)):
        if level >= done:
            codebook.data[:] = kmeans(residual, len(codebook), keys=vectors.keys, seed=seed + level)
            if balanced:
                codebook.data[:], offsets[:] = balance(residual, codebook.data, keys=vectors.keys, seed=seed + level)
        left = subtract_words(residual, codebook.data, offsets)
        if level >= done:
            metrics = {"step": float(level + 1), "reconstruction": left}
            report(metrics, partial(_snapshot, quantizer, level + 1))
    return quantizer.cpu().requires_grad_(False).eval()


@torch.no_grad()
def start_codebooks(codebooks: Iterable[nn.Parameter], latents: torch.Tensor, *, keys: np.ndarray, seed: int) -> None:
    """Sets each codebook to the k-means centroids of the residuals that reach it; `latents` [n, d] become the last."""
    for level, codebook in enumerate(codebooks):
        codebook.copy_(kmeans(latents, len(codebook), keys=keys, seed=seed + level))
        subtract_words(latents, codebook)


@torch.no_grad()
def set_statistics(quantizer: Quantizer, vectors: Vectors) -> None:
    """Takes mean, scale and whitening from the rows of all workers."""
    width = vectors.values.shape[1]
    moments = torch.zeros(2 * width + 1, dtype=torch.float64, device=vectors.values.device)
    for block in vectors.values.split(BLOCK_ROWS):
        block = block.double()
        moments += torch.cat([block.sum(0), block.square().sum(0), block.new_tensor([len(block)])])
    all_reduce_sum([moments])
    sums, squares, rows = moments[:width], moments[width:-1], moments[-1]
    quantizer.mean.copy_(sums / rows)
    variance = (squares / rows - (sums / rows).square()).clamp_min(0).mean()
    quantizer.scale.copy_(variance.sqrt().clamp_min(1e-6))
    if quantizer.architecture.whiten:
        variances, axes = torch.linalg.eigh(products(quantizer.standardise(vectors.values)) / rows)
        shrunk = (1 - SHRINKAGE) * variances + SHRINKAGE * variances.mean()  # weak directions are mostly noise
        deviations = shrunk.clamp_min(1e-6).sqrt()
        quantizer.whitening.copy_(axes / deviations @ axes.T)
        quantizer.unwhitening.copy_(axes * deviations @ axes.T)


def products(inputs: torch.Tensor) -> torch.Tensor:
    """Returns the sums of the products of all columns over the rows of all workers, float64 [D, D]."""
    width = inputs.shape[1]
    found = torch.zeros(width, width, dtype=torch.float64, device=inputs.device)
    for block in inputs.split(BLOCK_ROWS):
        found += block.double().T @ block.double()
    all_reduce_sum([found])
    return found


@torch.no_grad()
def subtract_words(residual: torch.Tensor, codebook: torch.Tensor, offsets: torch.Tensor | None = None) -> float:
    """Takes each row's codeword from it, in place; return the mean square of what is left over all workers."""
    parts = torch.zeros(2, dtype=torch.float64, device=residual.device)
    for block in residual.split(BLOCK_ROWS):
        block -= F.embedding(nearest(block, codebook, offsets), codebook)
        parts += parts.new_tensor([float(block.double().square().sum()), block.numel()])
    all_reduce_sum([parts])
    return float(parts[0] / parts[1])


def _snapshot(quantizer: Quantizer, level: int) -> State:
    return {"level": torch.tensor(level), **quantizer.state_dict()}
