"""The softmax over a catalogue, and over negatives drawn from it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from models.recommenders import catalogue_loss
from models.recommenders.catalogue_loss import CatalogueLoss, NegativesConfig, cross_entropy

COUNTS = torch.tensor([3, 0, 1, 40, 0, 7, 1, 2, 9, 5])
CHOSEN = [item for item, count in enumerate(COUNTS.tolist()) if count]
DIM = 4
TARGET = torch.tensor([3, 0, 8, 3, 2, 9, 5, 3, 6, 7, 3])


def make(negatives: int | None = None, **settings) -> CatalogueLoss:
    return CatalogueLoss(COUNTS, NegativesConfig(negatives=negatives, **settings))


def given() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(len(TARGET), DIM, requires_grad=True), torch.randn(len(COUNTS), DIM, requires_grad=True)


def drawn_by_hand(seed: int, negatives: int, beta: float) -> tuple[list[int], dict[int, float]]:
    """The negatives of a seed, and the odds of all items that somebody has chosen."""
    weights = {item: int(COUNTS[item]) ** beta for item in CHOSEN}
    odds = {item: min(1.0, negatives * weight / sum(weights.values())) for item, weight in weights.items()}
    torch.manual_seed(seed)
    dice = torch.rand(len(CHOSEN)).tolist()
    return [item for item, die in zip(CHOSEN, dice, strict=True) if die < odds[item]], odds


@pytest.mark.parametrize(
    ("beta", "log_q"), [(0.0, True), (0.0, False), (0.7, True), (0.7, False), (1.0, True)], ids=str
)
def test_the_loss_is_that_of_a_loop_over_states_and_negatives(
    beta: float, log_q: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue_loss, "POSITIONS", 4)
    loss, (hidden, vectors) = make(3, beta=beta, log_q=log_q), given()
    hits = 0
    for seed in range(6):
        negatives, odds = drawn_by_hand(seed, 3, beta)
        losses = []
        for state, target in zip(hidden, TARGET.tolist(), strict=True):
            among = [target, *(item for item in negatives if item != target)]
            hits += target in negatives
            logits = [state @ vectors[item] - (math.log(odds[item]) if log_q else 0.0) for item in among]
            losses.append(torch.stack(logits).logsumexp(0) - logits[0])
        wanted = torch.stack(losses).mean()
        torch.manual_seed(seed)
        found = loss(hidden, TARGET, vectors.__getitem__)
        torch.testing.assert_close(found, wanted)
        gradients = [torch.autograd.grad(one, (hidden, vectors)) for one in (found, wanted)]
        torch.testing.assert_close(*gradients)
    assert hits


def test_all_items_as_negatives_are_the_whole_catalogue() -> None:
    hidden, vectors = given()
    logits = hidden @ vectors[CHOSEN].T
    wanted = functional.cross_entropy(logits, torch.tensor([CHOSEN.index(item) for item in TARGET.tolist()]))
    gradients = torch.autograd.grad(wanted, (hidden, vectors))
    assert not gradients[1][COUNTS == 0].any()
    for loss in (make(), make(len(CHOSEN)), make(1_000_000, beta=0.5), make(2).eval()):
        found = loss(hidden, TARGET, vectors.__getitem__)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(torch.autograd.grad(found, (hidden, vectors)), gradients)


@pytest.mark.parametrize(("beta", "most"), [(0.0, 0.375), (1.0, 1.0)])
def test_items_are_drawn_by_their_popularity_and_nobodys_never(beta: float, most: float) -> None:
    """A batch of one target shows by its gradients which other items were drawn."""
    loss, (_, vectors) = make(3, beta=beta), given()
    met = torch.zeros(len(COUNTS))
    for seed in range(300):
        torch.manual_seed(seed)
        found = loss(torch.ones(1, DIM), torch.tensor([2]), vectors.__getitem__)
        met += torch.autograd.grad(found, vectors)[0].any(1)
    _, odds = drawn_by_hand(0, 3, beta)
    assert max(odds.values()) == most
    for item, share in enumerate((met / 300).tolist()):
        assert item == 2 or share == pytest.approx(odds.get(item, 0.0), abs=0.1)


def test_the_correction_finds_how_likely_items_are_and_without_it_popular_ones_lose() -> None:
    """Logits without states, of negatives in proportion to popularity: they learn the log of it, or else nothing."""
    counts = torch.tensor([1, 2, 3, 4, 6])
    target = torch.arange(5).repeat_interleave(counts)
    found = []
    for log_q in (True, False):
        loss = CatalogueLoss(counts, NegativesConfig(negatives=2, beta=1.0, log_q=log_q))
        logits = torch.zeros(5, 1, requires_grad=True)
        optimizer = torch.optim.SGD([logits], lr=1.0)
        mean = torch.zeros(5)
        for step in range(300):
            torch.manual_seed(step)
            optimizer.param_groups[0]["lr"] = 10 / (10 + step)
            optimizer.zero_grad()
            loss(torch.ones(len(target), 1), target, logits.__getitem__).backward()
            optimizer.step()
            mean += logits.detach()[:, 0] * (step >= 100) / 200
        found.append(mean.softmax(0))
    torch.testing.assert_close(found[0], counts / counts.sum(), atol=0.05, rtol=0)
    torch.testing.assert_close(found[1], torch.full((5,), 0.2), atol=0.05, rtol=0)


@pytest.mark.parametrize("negatives", [None, 3])
def test_no_states_cost_nothing_and_have_gradients(negatives: int | None) -> None:
    _, vectors = given()
    hidden = torch.zeros(0, DIM, requires_grad=True)
    loss = make(negatives)(hidden, TARGET[:0], vectors.__getitem__)
    assert loss == 0
    assert not any(part.any() for part in torch.autograd.grad(loss, (hidden, vectors)))


def test_the_blocks_of_a_loss_have_the_gradients_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, vectors = given()
    wanted = torch.autograd.grad(functional.cross_entropy(hidden @ vectors.T, TARGET), (hidden, vectors))
    monkeypatch.setattr(catalogue_loss, "POSITIONS", 3)
    found = torch.autograd.grad(cross_entropy(hidden, vectors, TARGET), (hidden, vectors))
    torch.testing.assert_close(found, wanted)
