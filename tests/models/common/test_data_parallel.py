from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional

from models.common.data_parallel import Strategy, backward, evaluating, gather_state, parallelise, restore, snapshot
from models.recommenders.sasrec import SasRec, SasRecConfig
from tests.models.workers import on_ranks

CPU = torch.device("cpu")
ITEMS = 12
NAMES = {"start", "item", "encoder.position.weight"}


class Layer(nn.Module):
    """What FSDP shares out by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + functional.dropout(self.inner(values).tanh(), 0.2, self.training)


class Tied(nn.Module):
    """Reads and writes by one matrix, which has two names, and has a weight that is not trained."""

    layers = ("Layer",)

    def __init__(self) -> None:
        super().__init__()
        self.read, self.write = nn.Embedding(ITEMS, 4), nn.Linear(4, ITEMS, bias=False)
        self.write.weight = self.read.weight
        self.layer, self.bias = Layer(), nn.Parameter(torch.zeros(ITEMS))
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        states = self.layer(self.read(batch[:, 0]) * self.frozen)
        return functional.cross_entropy(self.write(states) + self.bias, batch[:, 1])

    def weight(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.tensor(len(batch))


def tied() -> Tied:
    torch.manual_seed(0)
    return Tied()


def sasrec() -> SasRec:
    torch.manual_seed(0)
    config = SasRecConfig(dim=8, layers=2, inner=16, length=4, dropout=0.0)
    return SasRec(config, torch.ones(ITEMS, dtype=torch.int64))


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    trained = [part for part in module.parameters() if part.requires_grad]
    groups = [
        {"params": [part for part in trained if part.ndim > 1], "weight_decay": 0.1},
        {"params": [part for part in trained if part.ndim <= 1], "weight_decay": 0.0},
    ]
    # the gradient of a bias of keys is 0 but for rounding, which Adam is not to follow
    return torch.optim.AdamW(groups, lr=0.01, eps=1e-6)


def step(module: nn.Module, optimizer: torch.optim.Optimizer, batches: list[torch.Tensor]) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = backward(module, batches)
    optimizer.step()
    return loss


def windows(count: int, seed: int) -> torch.Tensor:
    """Histories of one to five items."""
    random = torch.Generator().manual_seed(seed)
    found = torch.randint(ITEMS, (count, 5), generator=random)
    lengths = torch.randint(1, 6, (count, 1), generator=random)
    return found.masked_fill(torch.arange(5) >= lengths, ITEMS)


def shares(number: int, rank: int | None) -> list[torch.Tensor]:
    """A step's batches of different sizes, three for the first rank and one for the second; None: all in one."""
    batches = [windows(size, 10 * number + size) for size in (4, 1, 2, 5)]
    return [torch.cat(batches)] if rank is None else (batches[:3], batches[3:])[rank if number != 1 else 1 - rank]


def trained(rank: int | None, strategy: Strategy) -> tuple[list[float], list[torch.Tensor], dict[str, torch.Tensor]]:
    """Losses of four steps, answers before, between and behind them, and the weights."""
    module = parallelise(sasrec(), strategy, CPU)
    optimizer = optimizer_of(module)
    losses, answers = [], []
    for number in range(4):
        with evaluating(module) as learner:
            assert not learner.training
            answers.append(learner.loss(windows(6, 99)))
        assert module.training
        losses.append(step(module, optimizer, shares(number, rank)))
    with evaluating(module) as learner:
        answers.append(learner.loss(windows(6, 99)))
    return losses, answers, gather_state(module)


def goes_on(rank: int, strategy: Strategy) -> list[tuple[float, dict[str, torch.Tensor]]]:
    """The fourth step's loss and its weights: undisturbed, and by another module from the state after the third."""
    ends, state = [], [dict[str, torch.Tensor]()]
    for start in (0, 3):
        module = parallelise(sasrec(), strategy, CPU)
        optimizer = optimizer_of(module)
        if start:
            torch.distributed.broadcast_object_list(state)  # as a file would have it
            restore(module, optimizer, state[0])
        for number in range(start, 4):
            if number == 3 and not start:
                state = [snapshot(module, optimizer)]
                assert bool(state[0]) == (rank == 0)
            loss = step(module, optimizer, shares(number, rank))
        ends.append((loss, gather_state(module)))
    return ends


def both(rank: int, strategy: Strategy) -> tuple[Any, Any]:
    return trained(rank, strategy), goes_on(rank, strategy)


def test_two_workers_take_the_steps_of_one_and_go_on_from_a_state(tmp_path: Path) -> None:
    losses, answers, state = trained(None, "ddp")
    calls: list[tuple[Strategy]] = [("ddp",), ("fsdp",)]
    for ranks in on_ranks(both, tmp_path, calls):
        for (found_losses, found_answers, _), ends in ranks:
            assert found_losses == pytest.approx(losses, rel=1e-4)
            torch.testing.assert_close(found_answers, answers, rtol=1e-4, atol=1e-5)
            (loss, weights), (again, weights_again) = ends
            assert again == loss == pytest.approx(losses[3], rel=1e-4)
            torch.testing.assert_close(weights_again, weights, rtol=0, atol=0)
        (_, _, found), (_, _, nothing) = (steps for steps, _ in ranks)
        torch.testing.assert_close(found, state, rtol=1e-3, atol=1e-4)
        assert not nothing


def test_one_worker_goes_on_bit_for_bit_from_a_file_with_tied_and_frozen_weights() -> None:
    def go(module: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> list[float]:
        losses = []
        for number in numbers:
            torch.manual_seed(number)
            batches = [torch.randint(ITEMS, (count, 2)) for count in (3, 5)]
            losses.append(step(module, optimizer, batches))
        return losses

    module = parallelise(tied(), "ddp", CPU)
    optimizer = optimizer_of(module)
    go(module, optimizer, range(3))
    content = save(snapshot(module, optimizer))
    wanted = go(module, optimizer, range(3, 6))

    torch.manual_seed(5)
    other = parallelise(Tied(), "ddp", CPU)
    other_optimizer = optimizer_of(other)
    restore(other, other_optimizer, load(content))
    assert other.learner.write.weight is other.learner.read.weight
    assert go(other, other_optimizer, range(3, 6)) == wanted
    assert all(torch.equal(one, two) for one, two in zip(module.parameters(), other.parameters(), strict=True))
    assert [group["weight_decay"] for group in other_optimizer.param_groups] == [0.1, 0.0]
    assert torch.equal(module.learner.frozen, torch.ones(4))


def test_a_snapshot_does_not_change_with_the_weights() -> None:
    module = parallelise(tied(), "ddp", CPU)
    optimizer = optimizer_of(module)
    step(module, optimizer, [torch.tensor([[0, 1]])])
    state = snapshot(module, optimizer)
    before = {name: value.clone() for name, value in state.items()}
    step(module, optimizer, [torch.tensor([[0, 1]])])
    assert all(torch.equal(before[name], value) for name, value in state.items())


def test_a_step_is_the_mean_over_its_batches_by_weight() -> None:
    batches = [windows(3, 0), windows(7, 1)]
    learner, alone = sasrec(), sasrec()
    loss = backward(parallelise(learner, "ddp", CPU), batches)
    weights = [float(alone.weight(batch)) for batch in batches]
    whole = sum(weight * alone.loss(batch) for weight, batch in zip(weights, batches, strict=True)) / sum(weights)
    whole.backward()
    assert loss == pytest.approx(whole.item(), rel=1e-5)
    for one, two in zip(learner.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6)


def test_gathered_weights_have_the_learners_own_names() -> None:
    learner = sasrec()
    state = gather_state(parallelise(learner, "ddp", CPU))
    assert set(state) == set(learner.state_dict()) > NAMES


def test_a_step_of_nothing_changes_nothing() -> None:
    module = parallelise(sasrec(), "ddp", CPU)
    assert backward(module, [torch.full((2, 3), ITEMS)]) == 0
    assert not any(part.grad.any() for part in module.parameters())


def test_half_precision_computes_otherwise_and_keeps_the_weights_whole() -> None:
    losses = [
        backward(parallelise(sasrec(), "ddp", CPU, precision), [windows(5, 0)])
        for precision in (torch.float32, torch.bfloat16)
    ]
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.02)
    module = parallelise(sasrec(), "ddp", CPU, torch.bfloat16)
    backward(module, [windows(5, 0)])
    assert {part.grad.dtype for part in module.parameters()} == {torch.float32}
