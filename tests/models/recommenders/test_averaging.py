"""Which states of a fit are kept for their average, and that a killed fit has them again."""

from __future__ import annotations

import random

import pytest
import torch

from models.recommenders import averaging
from models.recommenders.averaging import BestStates


def state(step: int) -> dict[str, torch.Tensor]:
    weights = torch.randn(3, 2, generator=torch.Generator().manual_seed(step))
    return {"weights": weights, "half": weights.bfloat16(), "codes": torch.arange(4)}


def offered(scores: list[float], count: int) -> BestStates:
    kept = BestStates(count)
    for step, score in enumerate(scores):
        if kept.admits(score):
            kept.add(step, score, state(step))
    return kept


@pytest.mark.parametrize("seed", range(5))
def test_the_best_are_kept_and_their_mean_is_that_of_their_tensors(seed: int) -> None:
    scores = [random.Random(seed).choice((0.1, 0.2, 0.3, 0.4)) for _ in range(12)]
    kept = offered(scores, 3)
    best = sorted(range(12), key=lambda step: (-scores[step], step))[:3]
    assert kept.steps == sorted(best)
    mean = kept.mean()
    torch.testing.assert_close(mean["weights"], sum(state(step)["weights"] for step in best) / 3)
    torch.testing.assert_close(mean["half"], (sum(state(step)["half"].double() for step in best) / 3).bfloat16())
    assert torch.equal(mean["codes"], torch.arange(4))


def test_a_state_is_kept_as_it_was() -> None:
    kept, tensors = BestStates(2), state(0)
    kept.add(0, 0.1, tensors)
    tensors["weights"].zero_()
    assert torch.equal(kept.mean()["weights"], state(0)["weights"])


def test_none_is_kept_where_none_is_averaged() -> None:
    kept = BestStates(1)
    assert not kept.admits(1.0)
    assert not kept.tensors()
    kept.restore({})
    assert not kept.steps


@pytest.mark.parametrize("scores", [[], [0.3, 0.1, 0.2, 0.2]])
def test_what_is_restored_goes_on_alike(scores: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    kept, other, second = offered(scores, 3), BestStates(3), BestStates(3)
    whole = {"model.weights": torch.ones(1), **kept.tensors()}
    other.restore(again := dict(whole))
    assert set(again) == {"model.weights"}
    for each in (kept, other):
        if each.admits(0.25):
            each.add(9, 0.25, state(9))
    assert other.steps == kept.steps
    assert all(torch.equal(value, kept.mean()[name]) for name, value in other.mean().items())
    monkeypatch.setattr(averaging, "rank_and_size", lambda: (1, 2))
    second.restore(whole)
    assert len(second.steps) == len(scores[:3])
    assert not second.steps or not second.mean()  # the first worker alone holds tensors
    kept.clear()
    assert not kept.steps
