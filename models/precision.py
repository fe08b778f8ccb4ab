"""The precisions that models are fitted in."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TINY = torch.finfo(torch.float32).tiny  # what keeps a sum of weights from being divided by as 0
