"""The loop of a next-item model's fit, in this process and in process groups of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.common.collectives import rank_and_size
from models.common.data_parallel import Strategy
from models.common.jagged import Jagged
from models.common.recommender import Queries, Recommended, best
from models.common.settings import FitConfig
from models.recommenders import fitting, next_item
from models.recommenders.fitting import NDCG, Callbacks, State, TrainingTask, best_of, fit, rate, validate
from models.recommenders.sasrec import SasRec, SasRecConfig
from storage.errors import UserError
from tests.models.workers import on_ranks

ITEMS, USERS = 24, 20
CONFIG = FitConfig(
    steps=7,
    batch_size=6,
    learning_rate=0.01,
    warmup=2,
    weight_decay=0.1,
    validate_every=3,
    patience=9,
    precision="fp32",
)


def lists(rows: list[list[int]]) -> Jagged:
    values = [value for row in rows for value in row]
    return Jagged(torch.tensor(values, dtype=torch.int64), torch.tensor([0, *map(len, rows)]).cumsum(0))


def asked(count: int) -> Queries:
    """Some without a history, all with something that they have met."""
    random = np.random.default_rng(1)
    histories = [random.integers(ITEMS, size=number % 4).tolist() for number in range(count)]
    seen = [[*history, int(random.integers(ITEMS))] for history in histories]
    targets = torch.from_numpy(random.integers(ITEMS, size=count))
    return Queries(np.arange(count), lists(histories), targets, lists(seen))


def make(dropout: float, negatives: int | None = None) -> TrainingTask:
    """SASRec over random chains of items, each step's users dealt out by turns."""
    random = torch.Generator().manual_seed(0)
    windows = (torch.randint(ITEMS, (USERS, 1), generator=random) + torch.arange(4)) % ITEMS
    torch.manual_seed(0)
    config = SasRecConfig(dim=8, layers=1, inner=16, length=4, dropout=dropout, negatives=negatives)
    learner = SasRec(config, windows.flatten().bincount(minlength=ITEMS))

    def draw(step: int) -> list[torch.Tensor]:
        rank, workers = rank_and_size()
        rows = torch.randperm(USERS, generator=torch.Generator().manual_seed(step))[: CONFIG.batch_size + 1]
        return list(windows[rows[rank::workers]].split(2))

    return TrainingTask(learner, draw, lambda trained: trained, limit=learner.limit)


class Kept:
    """What a loop has reported, with the state at every report, and the bests."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, Any]] = []
        self.states: list[State] = []
        self.bests: list[State] = []

    def callbacks(self, *, states: bool = True) -> Callbacks:
        def report(metrics: dict[str, Any], state: Any) -> None:
            self.metrics.append({name: value for name, value in metrics.items() if name != "seconds"})
            if states:
                self.states.append(state())

        return Callbacks(report, lambda learner, tensors: self.bests.append({k: v.clone() for k, v in tensors.items()}))


@pytest.mark.parametrize(("negatives", "averaged"), [(None, 1), (5, 1), (None, 2)])
def test_a_fit_that_goes_on_from_any_report_ends_as_if_undisturbed(
    negatives: int | None, averaged: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "REPORT_EVERY", 2)
    whole, config = Kept(), CONFIG.model_copy(update={"averaged": averaged})
    fit(config, make(0.3, negatives), asked(9), whole.callbacks(), seed=5)
    validated = [metrics["step"] for metrics in whole.metrics if "train_loss" in metrics]
    assert validated == [3, 6, 7]
    assert [metrics["step"] for metrics in whole.metrics] == [0, 2, 3, 4, 6, 7, *([7] if averaged > 1 else [])]
    for at, metrics in enumerate(whole.metrics):
        task, after = make(0.3, negatives), Kept()
        with torch.no_grad():
            for parameter in task.learner.parameters():
                parameter.zero_()  # nothing that a new process begins with counts
        torch.manual_seed(at)
        state = {name: value.clone() for name, value in whole.states[at].items()}
        fit(config, task, asked(9), after.callbacks(), seed=5, state=state)
        assert after.metrics == whole.metrics[at + 1 :], metrics
        last, other = (
            {name: part for name, part in kept.items() if name != "at.seconds"}
            for kept in (whole.states[-1], (after.states or whole.states)[-1])
        )
        assert last.keys() == other.keys()
        assert all(torch.equal(last[name], other[name]) for name in last)
        improved = len(after.bests)
        assert all(
            torch.equal(one[name], two[name])
            for one, two in zip(whole.bests[len(whole.bests) - improved :], after.bests, strict=True)
            for name in one
        )


def test_time_goes_on_as_well() -> None:
    kept, told = Kept(), list[float]()
    fit(CONFIG, make(0.0), asked(3), kept.callbacks(), seed=0)
    state = kept.states[0] | {"at.seconds": torch.tensor(1000.0)}
    fit(
        CONFIG,
        make(0.0),
        asked(3),
        Callbacks(lambda m, _: told.append(m["seconds"]), lambda *_: None),
        seed=0,
        state=state,
    )
    assert all(1000 < seconds < 2000 for seconds in told)


def test_weights_are_kept_within_their_bounds_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "REPORT_EVERY", 1)
    kept, task = Kept(), make(0.0)
    task.learner.log_scale.data.fill_(9.0)
    fit(CONFIG, task, asked(3), kept.callbacks(), seed=0)
    scales = [float(state["model.learner.log_scale"]) for state in kept.states]
    assert scales.pop(0) == 9
    assert len(scales) == CONFIG.steps
    assert max(scales) <= math.log(100) + 1e-6


class Still(nn.Module):
    """A learner that nothing teaches, recommended by a script: the places at which everybody's target comes."""

    layers = ()

    def __init__(self, places: list[int | None] | None = None) -> None:
        super().__init__()
        self.matrix, self.vector = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))
        self.places: Iterator[int | None] = iter(places or [])

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return (self.matrix.sum() + self.vector.sum()) * 0.0

    def weight(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.tensor(1.0)

    def recommend(self, histories: Jagged, *, k: int, banned: Jagged | None = None, allowed: Any = None) -> Recommended:
        items, place = torch.arange(100, 100 + k).repeat(len(histories.offsets) - 1, 1), next(self.places)
        if place is not None:
            items[:, place] = 7
        return Recommended(items, torch.zeros(items.shape))


def still(learner: Still) -> TrainingTask:
    return TrainingTask(learner, lambda step: [torch.zeros(1)], lambda trained: trained)


def one_query() -> Queries:
    return Queries(np.zeros(1, np.int64), lists([[1]]), torch.tensor([7]), lists([[1]]))


def test_the_best_state_is_kept_and_patience_ends_the_fit() -> None:
    """Even a first validation that finds nothing is the best so far: whatever happens, there is an artifact."""
    config = CONFIG.model_copy(update={"steps": 100, "validate_every": 1, "patience": 3})
    learner, kept = Still([None, 5, 2, 3, 2, None, 0]), Kept()
    fit(config, still(learner), one_query(), kept.callbacks(), seed=0)
    assert kept.metrics.pop(0) == {"step": 0}
    found = [metrics["valid_ndcg@10"] for metrics in kept.metrics]
    assert found == pytest.approx([0, 1 / math.log2(7), 1 / 2, 1 / math.log2(5), 1 / 2, 0])
    assert [metrics["valid_recall@10"] for metrics in kept.metrics] == [0, 1, 1, 1, 1, 0]
    assert len(kept.bests) == 3
    for tensors, state in zip(kept.bests, kept.states[1:], strict=False):
        assert set(tensors) == {"matrix", "vector"}
        assert all(torch.equal(part, state[f"model.learner.{name}"]) for name, part in tensors.items())


@pytest.mark.parametrize("stop_at", [1, 3, 5, 7])
def test_a_fit_may_end_at_a_step_with_the_state_that_a_longer_one_has_there(
    stop_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "REPORT_EVERY", 1)
    whole, kept = Kept(), Kept()
    fit(CONFIG, make(0.3), asked(9), whole.callbacks(), seed=5)
    config = CONFIG.model_copy(update={"stop_at": stop_at, "validate_every": 2, "patience": 1})
    fit(config, make(0.3), asked(9), kept.callbacks(), seed=5)
    assert [metrics["step"] for metrics in kept.metrics] == list(range(stop_at + 1))
    assert [metrics["step"] for metrics in kept.metrics if NDCG in metrics] == [stop_at]
    assert best_of(kept.metrics)["step"] == stop_at
    (tensors,) = kept.bests
    assert all(torch.equal(part, whole.states[stop_at][f"model.learner.{name}"]) for name, part in tensors.items())


def test_a_fit_cannot_end_behind_its_last_step() -> None:
    with pytest.raises(ValueError, match="stop_at lies behind the last step: write 7 or less, or raise steps"):
        FitConfig(steps=7, stop_at=8)
    with pytest.raises(ValueError, match="no states to average: set averaged to 1"):
        FitConfig(steps=7, stop_at=6, averaged=3)


@pytest.mark.parametrize(("place", "better"), [(0, True), (3, False), (2, False)])
def test_the_average_of_the_best_states_is_kept_where_it_is_better(place: int, better: bool) -> None:
    """Of four validations, the second and the third are the best; then the average is asked for."""
    config = CONFIG.model_copy(update={"steps": 4, "validate_every": 1, "averaged": 2})
    learner, kept = Still([5, 3, 2, None, place]), Kept()

    def drawn(step: int) -> list[torch.Tensor]:
        learner.matrix.data.fill_(float(10**step))
        return [torch.zeros(1)]

    task = still(learner)._replace(draw=drawn)
    fit(config.model_copy(update={"weight_decay": 0.0}), task, one_query(), kept.callbacks(), seed=0)
    last = kept.metrics[-1]
    assert last == {"step": 4, "averaged": [2, 3], "valid_recall@10": 1, NDCG: pytest.approx(1 / math.log2(place + 2))}
    assert len(kept.bests) == (4 if better else 3)
    torch.testing.assert_close(kept.bests[-1]["matrix"], torch.full((2, 3), 55.0 if better else 100.0))
    assert best_of(kept.metrics)["step"] == (4 if better else 3)
    torch.testing.assert_close(learner.matrix.detach(), torch.full((2, 3), 55.0))
    assert not [name for name in kept.states[-1] if name.startswith("kept.")]


def test_nothing_is_averaged_where_one_state_was_validated() -> None:
    config, kept = CONFIG.model_copy(update={"steps": 1, "averaged": 3}), Kept()
    fit(config, still(Still([0])), one_query(), kept.callbacks(), seed=0)
    assert [metrics["step"] for metrics in kept.metrics] == [0, 1]


def test_validations_may_count_from_a_later_step_on() -> None:
    config = CONFIG.model_copy(update={"steps": 100, "validate_every": 1, "patience": 2})
    kept = Kept()
    fit(config, still(Still([0, *[None] * 5]))._replace(patience_from=4), one_query(), kept.callbacks(), seed=0)
    assert [metrics["step"] for metrics in kept.metrics] == [0, 1, 2, 3, 4, 5, 6]


def test_weights_that_are_no_numbers_are_not_kept() -> None:
    kept, learner = Kept(), Still([0])
    learner.vector.data[1] = torch.inf
    config = CONFIG.model_copy(update={"steps": 1})
    task = still(learner)._replace(draw=lambda step: [torch.zeros(1)])
    learner.loss = lambda batch: learner.matrix.sum() * 0.0  # type: ignore[method-assign]
    with pytest.raises(UserError, match="weights are not numbers: lower learning_rate"):
        fit(config, task, one_query(), kept.callbacks(), seed=0)
    assert not kept.bests


def test_the_state_of_another_model_is_refused() -> None:
    kept = Kept()
    fit(CONFIG, make(0.0), asked(3), kept.callbacks(), seed=0)
    for state in ({}, kept.states[0] | {"model.learner.start": torch.zeros(3)}):
        with pytest.raises(UserError, match="run again with --from generate"):
            fit(CONFIG, make(0.0), asked(3), Kept().callbacks(), seed=0, state=dict(state))


def test_a_finished_fit_has_nothing_left_to_do() -> None:
    config = CONFIG.model_copy(update={"validate_every": 1, "patience": 1})
    kept, after = Kept(), Kept()
    fit(config, still(Still([0, 1])), one_query(), kept.callbacks(), seed=0)
    fit(config, still(Still()), one_query(), after.callbacks(), seed=0, state=kept.states[-1])
    assert len(kept.metrics) == 3
    assert not after.metrics


def test_matrices_decay_and_nothing_else_does() -> None:
    config = CONFIG.model_copy(update={"steps": 1, "warmup": 0, "learning_rate": 0.1, "weight_decay": 0.5})
    learner = Still([0])
    fit(config, still(learner), one_query(), Kept().callbacks(), seed=0)
    torch.testing.assert_close(learner.matrix.detach(), torch.full((2, 3), 0.95))
    assert torch.equal(learner.vector.detach(), torch.ones(3))


def test_losses_of_tasks_are_told_before_the_first_step_and_at_every_validation() -> None:
    kept, told = Kept(), iter([{"a": 3.0}, {"a": 2.0}, {"a": 1.0}])
    config = CONFIG.model_copy(update={"steps": 4, "validate_every": 2})
    fit(config, still(Still([0, 1]))._replace(losses=lambda learner: next(told)), one_query(), kept.callbacks(), seed=0)
    assert kept.metrics[0] == {"step": 0, "losses": {"a": 3.0}}
    assert [(metrics["step"], metrics["losses"]) for metrics in kept.metrics[1:]] == [(2, {"a": 2.0}), (4, {"a": 1.0})]


def test_the_rate_rises_in_a_line_and_falls_by_half_a_cosine() -> None:
    config = FitConfig(steps=1000, warmup=10)
    rates = [rate(step, config) for step in range(1000)]
    late = FitConfig(steps=1000, warmup=700)
    assert max(rate(step, late) for step in range(1000)) == 1  # the warm-up ends at the peak, however long it is
    assert rate(850, late) == pytest.approx(0.55)
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5], rel=1e-3)
    assert rates[9] == pytest.approx(1, rel=1e-3)
    assert rates[505] == pytest.approx(0.55, abs=1e-3)
    assert rates[-1] == pytest.approx(0.1, abs=1e-4)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rate(0, FitConfig(warmup=0)) == 1


def test_the_first_step_goes_as_far_as_its_rate() -> None:
    config = CONFIG.model_copy(update={"steps": 1, "warmup": 4, "weight_decay": 0.0})
    task = make(0.0)
    before = task.learner.item.detach().clone()
    fit(config, task, asked(2), Kept().callbacks(), seed=0)
    moved = (task.learner.item.detach() - before).abs().max()
    assert float(moved) == pytest.approx(config.learning_rate / 4, rel=1e-2)  # Adam's first step has a rate's length


def test_what_cannot_be_fitted_is_explained() -> None:
    config = CONFIG.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(UserError, match="lower learning_rate under fit"):
        fit(config, make(0.0), asked(2), Kept().callbacks(states=False), seed=0)
    with pytest.raises(UserError, match="validation split"):
        fit(CONFIG, make(0.0), asked(0), Kept().callbacks(), seed=0)


class Fixed:
    """Ranks by one random row of scores per number of items in the history."""

    def __init__(self) -> None:
        self.scores = torch.rand(4, ITEMS, generator=torch.Generator().manual_seed(3))

    def recommend(
        self, histories: Jagged, *, k: int, banned: Jagged | None = None, allowed: torch.Tensor | None = None
    ) -> Recommended:
        return best(self.scores[histories.offsets.diff()].clone(), k=k, banned=banned, allowed=allowed)


@pytest.mark.parametrize("filter_seen", [True, False])
def test_validation_counts_hits_among_ten_by_their_places(filter_seen: bool) -> None:
    queries, recommender = asked(40), Fixed()
    recall, ndcg = [], []
    for row, target in enumerate(queries.target.tolist()):
        length = int(queries.histories.offsets.diff()[row])
        seen = queries.seen.values[queries.seen.offsets[row] : queries.seen.offsets[row + 1]].tolist()
        order = recommender.scores[length].argsort(descending=True).tolist()
        top = [item for item in order if not (filter_seen and item in seen)][:10]
        recall.append(float(target in top))
        ndcg.append(1 / math.log2(top.index(target) + 2) if target in top else 0.0)
    found = validate(recommender, queries, filter_seen=filter_seen)
    assert found["valid_recall@10"] == pytest.approx(np.mean(recall))
    assert found["valid_ndcg@10"] == pytest.approx(np.mean(ndcg))
    assert 0 < np.mean(recall) < 1


def on_two(rank: int | None, strategy: Strategy) -> dict[str, Any]:
    """A fit, and validations of one, two and nine queries; blocks of two, so that shares differ in blocks, too."""
    next_item.USERS = 2
    kept = Kept()
    config = CONFIG.model_copy(update={"averaged": 2})
    fit(config, make(0.0), asked(5), kept.callbacks(states=False), seed=5, strategy=strategy)
    return {
        "metrics": kept.metrics,
        "bests": kept.bests,
        "validated": [validate(Fixed(), asked(count), filter_seen=True) for count in (1, 2, 9)],
    }


def test_two_workers_fit_and_validate_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_item, "USERS", next_item.USERS)  # put back behind the test
    wanted = on_two(None, "ddp")
    calls: list[tuple[Strategy]] = [("ddp",), ("fsdp",)]
    for first, second in on_ranks(on_two, tmp_path, calls):
        assert first["metrics"] == second["metrics"]
        assert first["validated"] == second["validated"]
        for one, other in zip(wanted["validated"], first["validated"], strict=True):
            assert other == pytest.approx(one)
        for one, other in zip(wanted["metrics"], first["metrics"], strict=True):
            assert other.pop("averaged", None) == one.get("averaged")
            assert other == pytest.approx({name: one[name] for name in other}, rel=1e-4)
        assert not any(second["bests"])
        for one, other in zip(wanted["bests"], first["bests"], strict=True):
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)


def test_the_first_queries_keep_their_lists() -> None:
    queries = asked(30)
    few = queries.first(7)
    assert few.user.tolist() == list(range(7))
    for row in few.user.tolist():
        assert few.target[row] == queries.target[row]
        for found, source in ((few.histories, queries.histories), (few.seen, queries.seen)):
            one = found.values[found.offsets[row] : found.offsets[row + 1]]
            assert torch.equal(one, source.values[source.offsets[row] : source.offsets[row + 1]])
    assert queries.first(30) is queries.first(99) is queries
