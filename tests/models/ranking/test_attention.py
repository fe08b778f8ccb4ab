from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from models.ranking.attention import TargetAttention


def attention(width: int = 4, seed: int = 0) -> TargetAttention:
    torch.manual_seed(seed)
    return TargetAttention(width, (8, 4))


def batch(rows: int = 6, length: int = 5, width: int = 4, seed: int = 1) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, length, generator=random) < 0.6
    mask[0], mask[1] = False, True
    return torch.randn(rows, width, generator=random), torch.randn(rows, length, width, generator=random), mask


def test_what_is_masked_has_no_weight_no_say_and_no_gradient() -> None:
    model, (target, history, mask) = attention(), batch()
    weights = model(target, history.requires_grad_(), mask)
    assert torch.equal(weights != 0, mask)
    other = torch.where(mask.unsqueeze(2), history, 1e3)
    torch.testing.assert_close(model(target, other, mask), weights)
    weights.sum().backward()
    assert torch.equal(history.grad.abs().sum(2) > 0, mask)


def test_an_item_weighs_the_same_wherever_it_stands_and_whatever_stands_beside_it() -> None:
    model, (target, history, mask) = attention(), batch()
    weights = model(target, history, mask)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(model(target, history[:, order], mask[:, order]), weights[:, order])
    for place in range(5):
        only = slice(place, place + 1)
        torch.testing.assert_close(model(target, history[:, only], mask[:, only]), weights[:, only])


def test_is_the_unit_over_both_their_difference_and_their_product() -> None:
    model, (target, history, mask) = attention(), batch()
    targets = target.unsqueeze(1).expand_as(history)
    both = torch.cat([targets, history, targets - history, targets * history], dim=2)
    torch.testing.assert_close(model(target, history, mask), model.unit(both).squeeze(2).where(mask, 0.0))


def test_one_history_serves_all_targets() -> None:
    model, (target, history, mask) = attention(), batch()
    one = slice(2, 3)
    expected = model(target, history[one].expand_as(history), mask[one].expand_as(mask))
    torch.testing.assert_close(model(target, history[one], mask[one]), expected)


def test_no_history_is_no_weights() -> None:
    target, history, mask = batch(length=2)
    assert attention()(target, history[:, :0], mask[:, :0]).shape == (6, 0)


def test_traces() -> None:
    model = attention()
    traced = torch.fx.symbolic_trace(model)
    for shape in ((6, 5), (3, 2)):
        torch.testing.assert_close(traced(*batch(*shape)), model(*batch(*shape)))


def test_learns_to_weigh_what_is_like_the_target() -> None:
    model = attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def loss(seed: int) -> torch.Tensor:
        target, history, _ = batch(256, 4, seed=seed)
        like = (target.unsqueeze(1) * history).sum(2) > 0
        return binary_cross_entropy_with_logits(model(target, history, torch.ones_like(like)), like.float())

    before = loss(0).item()
    for step in range(1, 101):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
    assert loss(0).item() < 0.5 * before
