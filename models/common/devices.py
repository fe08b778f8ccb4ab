"""Where a model computes, and in which precision."""

from __future__ import annotations

import functools

import torch

from models.common.settings import Precision

TINY = torch.finfo(torch.float32).tiny  # what keeps a sum of weights from being divided by as 0


def own_device() -> torch.device:
    """Returns the GPU that Ray gave this process, else the first of the machine's, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """Returns the type of activations on a device: `bf16` is float32 on a CPU that has no instruction for it.

    There a product of bfloat16 matrices took 87 times as long as one of float32.
    """
    computes_in_half = device.type != "cpu" or _cpu_has_bf16()
    return torch.bfloat16 if precision == "bf16" and computes_in_half else torch.float32


@functools.cache
def _cpu_has_bf16() -> bool:
    return any(there for name, there in torch.cpu.get_capabilities().items() if name.endswith("bf16"))
