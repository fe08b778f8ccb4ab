"""Fit of an RQ-VAE: start it at residual k-means in the principal axes, train with dead-code resets, then without.

Runs alone, or data-parallel in whatever torch process group surrounds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import nn

from models.common.collectives import all_reduce_sum
from models.common.data_parallel import restore, snapshot
from models.semantic_ids.kmeans import BLOCK_ROWS, nearest
from models.semantic_ids.moving_codebooks import MovingCodebooks
from models.semantic_ids.quantizer import Architecture, Quantizer
from models.semantic_ids.rqkmeans import State, products, set_statistics, start_codebooks
from models.semantic_ids.training_rows import Vectors, draw, lowest, mix, uniform

RESET_EVERY = 100  # steps between two resets of dead codes
REPORT_EVERY = 50  # steps
PARTNERS = 16_384  # rows that are mixed into others
MIX = 0.5  # largest share of another row in one
TEMPERATURE = 0.1  # of the alignment


@dataclass(frozen=True)
class Schedule:
    """Course of a fit.

    Attributes:
        steps: optimiser steps in all.
        batch_size: rows of a step over all workers, on average.
        learning_rate: of Adam at the start; it falls to zero along half a cosine.
        commitment: weight β of the pull of latents towards their codewords.
        reset_until: share of the steps after which dead codes stay as they are.
        mixup: train on mixtures of two rows, which is worth most to small catalogues.
        alignment: weight of the collaborative alignment.
    """

    steps: int = 1_500
    batch_size: int = 256
    learning_rate: float = 1e-3
    commitment: float = 0.1
    reset_until: float = 0.6
    mixup: bool = True
    alignment: float = 0.0


class Losses(NamedTuple):
    """Sums over the rows of a batch, scalars with gradient: ‖x − x̂‖², Σ_h ‖r_h − sg[c_h]‖², the alignment."""

    reconstruction: torch.Tensor
    quantization: torch.Tensor
    alignment: torch.Tensor


def fit_rqvae(
    vectors: Vectors,
    architecture: Architecture,
    schedule: Schedule,
    *,
    seed: int,
    report: Callable[[dict[str, float], Callable[[], State]], None] = lambda metrics, snapshot: None,
    state: State | None = None,
) -> Quantizer:
    """Fits on the rows of all workers.

    Which rows make a batch is drawn by their keys; every worker adds the gradients of the rows that it holds, also of
    none. So all take equally many steps whatever they hold, and the number of workers changes nothing but the order
    of floating-point sums (with alignment, whose negatives are a worker's own rows, a little more).

    Args:
        vectors: this worker's rows, with signals where `schedule.alignment` is positive.
        report: called equally often on every worker, with step, loss, reconstruction (mean squared error per
            dimension of the encoder's input) and quantization (per row), and with what takes a snapshot of the
            state to go on from.
        state: of an earlier attempt; the rest of the fit is as if it had not stopped.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        quantizer = Quantizer(architecture)
        width = vectors.signals.shape[1]
        head = nn.Linear(architecture.latent_dim, width, bias=False) if schedule.alignment else nn.Identity()
    moving = MovingCodebooks(architecture.codebook_sizes, architecture.latent_dim)
    model = nn.ModuleDict({"quantizer": quantizer, "head": head, "moving": moving}).to(vectors.values.device)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=schedule.learning_rate, fused=True)
    first, deal = 0, Deal(vectors.keys, schedule.batch_size, seed, vectors.values.device)
    if state is not None:
        first = int(state["step"])
        restore(model, optimizer, {name: tensor for name, tensor in state.items() if name != "step"})
        inputs = quantizer.inputs(vectors.values)
    else:
        set_statistics(quantizer, vectors)
        inputs = quantizer.inputs(vectors.values)
        start(quantizer, inputs, vectors.keys, seed)
        moving.start(quantizer.codebooks, _counts(quantizer, inputs) / deal.batches)
    partners = lowest(inputs, uniform(vectors.keys, seed), PARTNERS)
    for step in range(first, schedule.steps):
        if 0 < step < schedule.steps * schedule.reset_until and step % RESET_EVERY == 0:
            reset_dead_codes(quantizer, moving, inputs, vectors.keys, seed=seed + step)
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * (1 + np.cos(np.pi * step / schedule.steps)) / 2
        rows = deal.rows_of(step)
        batch = inputs[rows]
        if schedule.mixup:
            batch = _mixed(batch, partners, vectors.keys[rows.numpy()], seed=seed + step)
        losses, codes, residuals = losses_of(quantizer, batch, schedule, head, vectors.signals[rows])
        optimizer.zero_grad(set_to_none=False)
        _weighted(losses, schedule).backward()
        moves = moving.of_batch(codes, residuals)
        told = torch.stack([*(loss.detach() for loss in losses), inputs.new_tensor(float(len(rows)))])
        gradients = [parameter.grad for parameter in learned if parameter.grad is not None]
        all_reduce_sum([*gradients, *moves, told])
        for gradient in gradients:
            gradient /= told[-1].clamp_min(1)
        optimizer.step()
        moving.update(quantizer.codebooks, *moves)
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == schedule.steps:
            report(_means(step + 1, told, schedule, inputs.shape[1]), partial(_snapshot, model, optimizer, step + 1))
    return quantizer.cpu().requires_grad_(False).eval()


@torch.no_grad()
def start(quantizer: Quantizer, inputs: torch.Tensor, keys: np.ndarray, seed: int) -> None:
    """Set the linear maps to the principal axes of the inputs of all workers, and the codebooks by k-means in there."""
    axes = torch.linalg.eigh(products(inputs)).eigenvectors.flip(1)[:, : quantizer.architecture.latent_dim]
    peaks = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    axes = (axes * peaks.sign()).float()  # one sign, whatever LAPACK chose
    quantizer.encoder.get_parameter("linear.weight").zero_()[: axes.shape[1]] = axes.T
    quantizer.decoder.get_parameter("linear.weight").zero_()[:, : axes.shape[1]] = axes
    start_codebooks(quantizer.codebooks, _latents(quantizer, inputs), keys=keys, seed=seed)


def losses_of(
    quantizer: Quantizer, inputs: torch.Tensor, schedule: Schedule, head: nn.Module, signals: torch.Tensor
) -> tuple[Losses, torch.Tensor, torch.Tensor]:
    """Losses of standardised inputs [n, D], with the codes and residuals that move the codebooks.

    ‖x − x̂‖² and Σ_h ‖r_h − sg[c_h]‖² (van den Oord et al. 2017, equation 3, at every level). The decoder's gradient
    reaches the latent straight through the codewords.
    Where `schedule.alignment` is positive, the contrastive loss of LETTER (Wang et al., CIKM 2024, equation 4) between
    the codewords' sum, seen through `head`, and the rows' collaborative vectors, on cosines with a temperature.

    Returns:
        Losses; codes int64 [n, L]; residuals before each level, float [L, n, d], without gradient.
    """
    latents = quantizer.encoder(inputs)
    codes = quantizer.quantize(latents)
    words = torch.stack(
        [F.embedding(code, codebook) for code, codebook in zip(codes.T, quantizer.codebooks, strict=True)]
    )
    left = latents - words.cumsum(0)  # after each level
    quantized = words.sum(0)
    through = latents + (quantized - latents).detach()
    alignment = _alignment(head(through), signals) if schedule.alignment else inputs.new_zeros(())
    reconstruction = (inputs - quantizer.decoder(through)).square().sum()
    return Losses(reconstruction, left.square().sum(), alignment), codes, (left + words).detach()


def _weighted(losses: Losses, schedule: Schedule) -> torch.Tensor:
    """Returns the loss."""
    weighted = schedule.commitment * losses.quantization + schedule.alignment * losses.alignment
    return losses.reconstruction + weighted


def _alignment(seen: torch.Tensor, signals: torch.Tensor) -> torch.Tensor:
    known = ~signals.isnan().any(1)
    logits = F.normalize(seen[known], dim=1) @ F.normalize(signals[known], dim=1).T / TEMPERATURE
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="sum")


@torch.no_grad()
def reset_dead_codes(
    quantizer: Quantizer, moving: MovingCodebooks, inputs: torch.Tensor, keys: np.ndarray, *, seed: int
) -> int:
    """Moves every codeword that no row uses onto a residual of its level; return how many moved.

    Residuals are drawn by their squared distance to their codeword: where the level fits worst. A moved codeword has
    the weight of an average one.
    """
    residual = _latents(quantizer, inputs)
    counts = moving.counts.split(moving.sizes)
    moved = 0
    for level, codebook in enumerate(quantizer.codebooks):
        codes = nearest(residual, codebook)
        used = torch.bincount(codes, minlength=len(codebook))
        all_reduce_sum([used])
        dead = (used == 0).nonzero()[:, 0]
        left = residual - F.embedding(codes, codebook)
        if len(dead):
            found = draw(residual, left.square().sum(1), len(dead), keys=keys, seed=seed + level)
            codebook[dead[: len(found)]] = found
            counts[level][dead] = counts[level].mean()
            moved += len(found)
        residual = left
    if moved:
        moving.start(quantizer.codebooks, moving.counts.clone())
    return moved


@torch.no_grad()
def _counts(quantizer: Quantizer, inputs: torch.Tensor) -> torch.Tensor:
    """Rows of all workers that use each codeword, float [K in all]."""
    levels = zip(quantizer.quantize(_latents(quantizer, inputs)).T, quantizer.architecture.codebook_sizes, strict=True)
    counts = torch.cat([torch.bincount(level, minlength=size) for level, size in levels]).to(inputs.dtype)
    all_reduce_sum([counts])
    return counts


def _latents(quantizer: Quantizer, inputs: torch.Tensor) -> torch.Tensor:
    return torch.cat([quantizer.encoder(block) for block in inputs.split(BLOCK_ROWS)])


class Deal:
    """Which rows make the batch of a step: every epoch deals all rows of all workers into batches, by their keys."""

    def __init__(self, keys: np.ndarray, batch_size: int, seed: int, device: torch.device | str = "cpu") -> None:
        rows = torch.tensor([len(keys)], device=device)
        all_reduce_sum([rows])
        self.batches = max(1, round(int(rows) / batch_size))
        self._keys, self._seed, self._epoch = keys, seed, -1
        self._dealt: tuple[torch.Tensor, ...] = ()

    def rows_of(self, step: int) -> torch.Tensor:
        """Numbers of this worker's rows, int64; maybe none."""
        epoch, number = divmod(step, self.batches)
        if epoch != self._epoch:
            numbers = (mix(self._keys, self._seed + epoch) % np.uint64(self.batches)).astype(np.int64)
            sizes = np.bincount(numbers, minlength=self.batches).tolist()
            self._dealt, self._epoch = torch.from_numpy(np.argsort(numbers, kind="stable")).split(sizes), epoch
        return self._dealt[number]


def _mixed(batch: torch.Tensor, partners: torch.Tensor, keys: np.ndarray, *, seed: int) -> torch.Tensor:
    """Each row with a partner in a random proportion (Zhang et al., "mixup", ICLR 2018), at the rows' variance."""
    chosen = (uniform(keys, 2 * seed) * len(partners)).long().clamp_max(len(partners) - 1)
    share = MIX * uniform(keys, 2 * seed + 1).to(batch).unsqueeze(1)
    mixture = (1 - share) * batch + share * partners[chosen.to(partners.device)]
    return mixture / ((1 - share).square() + share.square()).sqrt()


def _snapshot(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> State:
    """Returns all that the rest of a fit depends on."""
    return {"step": torch.tensor(step), **snapshot(model, optimizer)}


def _means(step: int, told: torch.Tensor, schedule: Schedule, width: int) -> dict[str, float]:
    means = Losses(*(told[:-1] / told[-1].clamp_min(1)))
    return {
        "step": step,
        "loss": float(_weighted(means, schedule)),
        "reconstruction": float(means.reconstruction) / width,
        "quantization": float(means.quantization),
        "alignment": float(means.alignment),
    }
