"""The learned scale of cosines, as CLIP has it (Radford et al., ICML 2021)."""

from __future__ import annotations

import math

import torch
from torch import nn

FIRST, LAST = 1 / 0.07, 100.0


def log_scale(*shape: int) -> nn.Parameter:
    """Returns the log of a scale as it begins; of one dimension where FSDP is to share it out."""
    return nn.Parameter(torch.full(shape, FIRST).log())


def limit(log_scale: nn.Parameter) -> None:
    """Keeps the scale within its bound; to be called after every step."""
    log_scale.data.clamp_(max=math.log(LAST))
