"""Seeds of many draws from a few numbers, so that no draw depends on another."""

from __future__ import annotations

import numpy as np
import torch


def seed_of(*numbers: int) -> int:
    """63 bits that the numbers decide; begin with one that says what is drawn, as zeros at the end change nothing."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(*numbers: int) -> torch.Generator:
    """Random numbers that the numbers decide."""
    return torch.Generator().manual_seed(seed_of(*numbers))
