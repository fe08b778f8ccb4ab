"""Fit of an RQ-VAE: warm up the autoencoder, start the codebooks by k-means, train with dead-code resets, then without.

Runs alone, or data-parallel in whatever torch process group surrounds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from models.kmeans import draw, kmeans, nearest
from models.quantizer import BLOCK_ROWS, Architecture, Losses, Quantizer

RESET_EVERY = 100  # steps between two resets of dead codes
REPORT_EVERY = 50  # steps


@dataclass(frozen=True)
class Schedule:
    """Course of a fit.

    Attributes:
        steps: optimiser steps in all.
        batch_size: rows of a step over all workers.
        learning_rate: of Adam at the start; it falls to zero along half a cosine.
        warm_up: share of the steps that train the autoencoder alone, before the codebooks start.
        reset_until: share of the steps after which dead codes stay as they are.
    """

    steps: int = 1_500
    batch_size: int = 256
    learning_rate: float = 2e-3
    warm_up: float = 0.1
    reset_until: float = 0.6


def fit_quantizer(
    embeddings: torch.Tensor,
    architecture: Architecture,
    schedule: Schedule,
    *,
    seed: int,
    report: Callable[[dict[str, float]], None] = lambda metrics: None,
) -> Quantizer:
    """Fit on all embeddings, float [N, D]; every worker holds them and computes its share of each batch.

    Batches are drawn alike on every worker and gradients are summed over all, so the number of workers changes
    nothing but the order of floating-point sums. Every worker needs the same rows in the same order.

    Args:
        report: called equally often on every worker with step, loss, reconstruction (mean squared error per
            dimension of the standardised input) and quantization (per row).
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        quantizer = Quantizer(architecture).to(embeddings.device)
    quantizer.set_statistics(embeddings)
    inputs = quantizer.standardise(embeddings)
    shuffles, draws = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=schedule.learning_rate, fused=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, schedule.steps)
    warm_up = round(schedule.steps * schedule.warm_up)
    for step, batch in zip(range(schedule.steps), _batches(len(inputs), schedule.batch_size, shuffles), strict=False):
        if step == warm_up:
            start_codebooks(quantizer, inputs, draws)
            _broadcast(quantizer.codebooks)
        elif warm_up < step < schedule.steps * schedule.reset_until and (step - warm_up) % RESET_EVERY == 0:
            reset_dead_codes(quantizer, inputs, draws)
            _broadcast(quantizer.codebooks)
        share = inputs[batch[rank::world].to(inputs.device)]
        losses = _warm_up_losses(quantizer, share) if step < warm_up else quantizer(share)
        optimizer.zero_grad()
        ((losses.reconstruction + losses.quantization) / len(batch)).backward()
        _sum_over_workers(p.grad for p in quantizer.parameters() if p.grad is not None)
        optimizer.step()
        decay.step()
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == schedule.steps:
            report({"step": step + 1, **_means(losses, rows=len(batch), width=inputs.shape[1])})
    return quantizer.requires_grad_(False).eval()


@torch.no_grad()
def start_codebooks(quantizer: Quantizer, inputs: torch.Tensor, generator: torch.Generator) -> None:
    """Set each codebook to the k-means centroids of the residuals that reach it, over the whole set."""
    residual = _latents(quantizer, inputs)
    for codebook in quantizer.codebooks:
        codebook.copy_(kmeans(residual, len(codebook), generator=generator))
        residual = residual - codebook[nearest(residual, codebook)[0]]


@torch.no_grad()
def reset_dead_codes(quantizer: Quantizer, inputs: torch.Tensor, generator: torch.Generator) -> int:
    """Move every codeword that no row of the whole set uses onto a residual of its level; return how many moved.

    Residuals are drawn by their squared distance to their codeword: where the level fits worst.
    """
    codes, residuals = quantizer.quantize(_latents(quantizer, inputs))
    moved = 0
    for codebook, code, residual in zip(quantizer.codebooks, codes.T, residuals, strict=True):
        dead = torch.bincount(code, minlength=len(codebook)) == 0
        errors = (residual - codebook[code]).square().sum(1)
        codebook[dead] = residual[draw(errors, int(dead.sum()), generator)]
        moved += int(dead.sum())
    return moved


def _latents(quantizer: Quantizer, inputs: torch.Tensor) -> torch.Tensor:
    return torch.cat([quantizer.encoder(block) for block in inputs.split(BLOCK_ROWS)])


def _warm_up_losses(quantizer: Quantizer, inputs: torch.Tensor) -> Losses:
    errors = inputs - quantizer.decoder(quantizer.encoder(inputs))
    return Losses(errors.square().sum(), errors.new_zeros(()))


def _batches(rows: int, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Shuffled batches of row numbers without end; those of one epoch differ by at most one row in size."""
    while True:
        yield from torch.randperm(rows, generator=generator).tensor_split(max(1, round(rows / batch_size)))


def _sum_over_workers(tensors: Iterable[torch.Tensor]) -> None:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    listed = list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in listed])  # one message instead of one per tensor
    dist.all_reduce(flat)
    for tensor, part in zip(listed, flat.split([tensor.numel() for tensor in listed]), strict=True):
        tensor.copy_(part.view_as(tensor))


def _broadcast(codebooks: Iterable[torch.Tensor]) -> None:
    if dist.is_initialized():
        for codebook in codebooks:
            dist.broadcast(codebook.data, src=0)


def _means(losses: Losses, *, rows: int, width: int) -> dict[str, float]:
    sums = torch.stack([losses.reconstruction.detach(), losses.quantization.detach()])
    _sum_over_workers([sums])
    reconstruction, quantization = (sums / rows).tolist()
    return {
        "loss": reconstruction + quantization,
        "reconstruction": reconstruction / width,
        "quantization": quantization,
    }
