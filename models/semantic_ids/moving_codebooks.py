"""Codebooks that follow the residuals they are chosen for, as exponential moving averages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

DECAY = 0.99
LEAST = 1e-4  # weight below which a codeword stays where it is


class MovingCodebooks(nn.Module):
    """Per codeword the moving number of rows that choose it and the moving sum of their residuals.

    A codeword is the ratio of the two (van den Oord et al., "Neural Discrete Representation Learning", 2017, appendix
    A.1). All codebooks lie one after the other.
    """

    counts: torch.Tensor
    sums: torch.Tensor

    def __init__(self, sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.register_buffer("counts", torch.zeros(sum(sizes)))
        self.register_buffer("sums", torch.zeros(sum(sizes), width))

    def of_batch(self, codes: torch.Tensor, residuals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Counts [K in all] and sums [K in all, d] of a batch: codes int64 [n, L], residuals [L, n, d] before them."""
        starts = torch.tensor([0, *self.sizes[:-1]], device=codes.device).cumsum(0)
        places = (codes + starts).T.reshape(-1)
        rows = residuals.flatten(0, 1)
        counts = torch.zeros_like(self.counts).index_add_(0, places, rows.new_ones(len(rows)))
        return counts, torch.zeros_like(self.sums).index_add_(0, places, rows)

    def start(self, codebooks: nn.ParameterList, counts: torch.Tensor) -> None:
        """Begins at given codewords, each with the number of rows [K in all] that a batch will have of it."""
        self.counts.copy_(counts)
        self.sums.copy_(torch.cat(list(codebooks)) * counts.unsqueeze(1))

    def update(self, codebooks: nn.ParameterList, counts: torch.Tensor, sums: torch.Tensor) -> None:
        """Takes a batch in and moves the codewords."""
        self.counts.lerp_(counts, 1 - DECAY)
        self.sums.lerp_(sums, 1 - DECAY)
        words = torch.where(
            self.counts.unsqueeze(1) > LEAST,
            self.sums / self.counts.clamp_min(LEAST).unsqueeze(1),
            torch.cat(list(codebooks)),
        )
        for codebook, moved in zip(codebooks, words.split(self.sizes), strict=True):
            codebook.copy_(moved)
