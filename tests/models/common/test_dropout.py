from __future__ import annotations

import pytest
import torch

from models.common.dropout import dropout


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_share_is_zero_and_the_mean_stays(share, dtype):
    torch.manual_seed(0)
    values = torch.ones(101, 997, dtype=dtype)
    found = dropout(values, share, training=True)
    assert found.dtype == dtype
    assert float((found == 0).float().mean()) == pytest.approx(share, abs=0.005)
    assert float(found.float().mean()) == pytest.approx(1, abs=0.03)
    assert len(found.unique()) == 2
    rows, columns = (found == 0).float().mean(0), (found == 0).float().mean(1)
    assert rows.std() < 2.5 * (share * (1 - share) / 101) ** 0.5  # no pattern
    assert columns.std() < 2.5 * (share * (1 - share) / 997) ** 0.5


def test_however_large_a_share_is_some_values_are_left():
    found = dropout(torch.ones(100_000), 0.999, training=True)
    assert sorted(found.unique().tolist()) == [0, 256]


def test_gradients_pass_where_values_did():
    values = torch.ones(1000, requires_grad=True)
    found = dropout(values, 0.3, training=True)
    found.sum().backward()
    torch.testing.assert_close(values.grad, found.detach())


def test_a_seed_decides_and_evaluation_drops_nothing():
    values = torch.randn(8, 7)

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return dropout(values, 0.5, training=True)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert dropout(values, 0.5, training=False) is values
    assert dropout(values, 0.0, training=True) is values
