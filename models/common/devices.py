"""Where a model computes, and in which precision."""

from __future__ import annotations

import torch

from models.common.settings import Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
TINY = torch.finfo(torch.float32).tiny  # what keeps a sum of weights from being divided by as 0


def own_device() -> torch.device:
    """Returns the GPU that Ray gave this process, else the first of the machine's, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
