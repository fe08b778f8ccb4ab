"""Dropout (Srivastava et al., JMLR 2014) that costs little on a CPU."""

from __future__ import annotations

import torch
from torch.nn import functional

STEPS = 256  # a share is a number of these


def dropout(values: torch.Tensor, share: float, *, training: bool) -> torch.Tensor:
    """Zero a share of the values and scale the others up; on a CPU the share is rounded to 1/256.

    There torch draws a number per element, which took a sixth of a small decoder's step. Here a byte decides, and one
    draw brings eight.
    """
    if not training or not share:
        return values
    if values.device.type != "cpu":
        return functional.dropout(values, share)
    dropped = min(round(share * STEPS), STEPS - 1)
    draws = torch.randint(-(2**63), 2**63 - 1, (-(-values.numel() // 8),))
    keep = draws.view(torch.uint8)[: values.numel()].view(values.shape) >= dropped
    return torch.where(keep, values * (STEPS / (STEPS - dropped)), 0.0)
