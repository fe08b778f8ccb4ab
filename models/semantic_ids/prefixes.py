"""Numbers for the distinct prefixes of codes: one way for suffixes, scorecards and tries."""

from __future__ import annotations

import numpy as np
import torch


def number_prefixes(codes: torch.Tensor) -> list[torch.Tensor]:
    """Numbers the distinct first h codes of all rows for h = 0 … L, from 0 in lexicographic order.

    Args:
        codes: integers [N, L]; they may be negative.

    Returns:
        L + 1 tensors int64 [N], on the device of the codes.
    """
    numbers = [torch.zeros(len(codes), dtype=torch.int64, device=codes.device)]
    for level in codes.long().T:
        # each depth is numbered without gaps, so that the product stays below N times the range of the codes
        low, high = level.aminmax() if len(level) else (0, 0)
        numbers.append(torch.unique(numbers[-1] * (high - low + 1) + level - low, return_inverse=True)[1])
    return numbers


def number_rows(codes: np.ndarray) -> np.ndarray:
    """Numbers the distinct rows of codes, integers [N, L], from 0 in lexicographic order: int64 [N]; L may be 0."""
    return number_prefixes(torch.tensor(codes))[-1].numpy()
