"""Where a process computes."""

from __future__ import annotations

import torch


def own_device() -> torch.device:
    """The GPU that Ray gave this process, or the first of the machine's, if there is one; else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
