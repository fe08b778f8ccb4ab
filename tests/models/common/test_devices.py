from __future__ import annotations

import pytest
import torch

from models.common import devices


@pytest.mark.parametrize(("capable", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_computes_in_half_precision_only_with_instructions_for_it(monkeypatch, capable, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": capable, "cpu_name": "x"})
    devices._cpu_has_bf16.cache_clear()
    try:
        assert devices.dtype_of("bf16", torch.device("cpu")) == expected
        assert devices.dtype_of("fp32", torch.device("cpu")) == torch.float32
        assert devices.dtype_of("bf16", torch.device("cuda")) == torch.bfloat16
    finally:
        devices._cpu_has_bf16.cache_clear()
