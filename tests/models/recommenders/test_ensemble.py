"""An ensemble of next-item models: its scores and weights by brute force, and its artifact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.common.recommender import Queries
from models.recommenders import ensemble
from models.recommenders.artifacts import load
from models.recommenders.ensemble import Ensemble, fit_ensemble, shares
from models.recommenders.fitting import NDCG, validate
from storage import files
from storage.errors import ArtifactError
from tests.models.recommenders.test_next_item import HISTORIES, ITEMS, lists, make

KINDS = ("sasrec", "product_codes")


@pytest.fixture
def members() -> list:
    return [make(kind) for kind in KINDS]


def naive(members: list, weights: tuple[float, ...], history: list[int]) -> torch.Tensor:
    """The sum for one history alone, by the softmax written out."""
    total = torch.zeros(ITEMS)
    for member, weight in zip(members, weights, strict=True):
        scores = member.scores(member._last(lists([history])))[0].double().detach()
        total = total + weight * (scores.exp() / scores.exp().sum()).log().float()
    return total


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.25, 0.75)])
def test_a_score_is_the_weighted_sum_of_log_probabilities(
    members: list, weights: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensemble, "USERS", 2)
    banned = [[], [4, 5], [7, 7, 1], list(range(ITEMS)), []]
    allowed = torch.rand(ITEMS, generator=torch.Generator().manual_seed(1)) < 0.8
    found = Ensemble(members, weights).recommend(lists(HISTORIES), k=9, banned=lists(banned), allowed=allowed)
    for row, history in enumerate(HISTORIES):
        scores = naive(members, weights, history).masked_fill(~allowed, -torch.inf)
        scores[banned[row]] = -torch.inf
        order = [item for item in scores.argsort(descending=True).tolist()[:9] if scores[item] > -torch.inf]
        assert found.items[row].tolist() == order + [-1] * (9 - len(order))
        torch.testing.assert_close(found.scores[row, : len(order)], scores[order], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("at", [0, 1])
def test_a_member_that_has_all_the_weight_answers_alone(members: list, at: int) -> None:
    weights = [float(place == at) for place in range(2)]
    with torch.no_grad():
        members[0].item[5] = 0.0  # an item that SASRec never recommends
    wanted = members[at].recommend(lists(HISTORIES), k=ITEMS).items
    assert torch.equal(Ensemble(members, weights).recommend(lists(HISTORIES), k=ITEMS).items, wanted)
    assert 5 not in Ensemble(members, (0.5, 0.5)).recommend(lists(HISTORIES), k=ITEMS).items


def asked(members: list, weights: tuple[float, ...]) -> Queries:
    """What the ensemble of these weights is always right about."""
    random = np.random.default_rng(0)
    histories = lists([random.integers(ITEMS, size=4).tolist() for _ in range(60)])
    target = Ensemble(members, weights).recommend(histories, k=1).items[:, 0]
    return Queries(np.arange(60), histories, target, lists([[]] * 60))


@pytest.mark.parametrize("weights", shares(2, 4))
def test_validation_chooses_the_weights(members: list, weights: tuple[float, ...]) -> None:
    valid = asked(members, weights)
    found = fit_ensemble(members, 4, valid, filter_seen=True)
    gains = {each: validate(Ensemble(members, each), valid, filter_seen=True)[NDCG] for each in shares(2, 4)}
    assert gains[weights] == pytest.approx(1)
    assert gains[tuple(weight for _, weight in found.weighed)] == max(gains.values())


def test_shares_add_up_and_even_ones_come_first() -> None:
    assert len(shares(3, 4)) == 15
    assert all(sum(each) == pytest.approx(1) for each in shares(3, 4))
    assert shares(3, 3)[0] == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_the_artifact_holds_its_members_and_is_read_alone(members: list, tmp_path: Path) -> None:
    model, uri = Ensemble(members, (0.25, 0.75)), str(tmp_path / "ensemble")
    model.save(uri)
    assert {path.name for path in (tmp_path / "ensemble").iterdir()} == {"config.json", "model.safetensors", *KINDS}
    (tmp_path / "ensemble").rename(tmp_path / "moved")
    loaded, wanted = load(str(tmp_path / "moved")), model.recommend(lists(HISTORIES), k=9)
    found = loaded.recommend(lists(HISTORIES), k=9)
    assert torch.equal(found.items, wanted.items)
    assert torch.equal(found.scores, wanted.scores)
    assert isinstance(loaded, Ensemble)
    assert [(member.kind, weight) for member, weight in loaded.weighed] == [(KINDS[0], 0.25), (KINDS[1], 0.75)]


def test_a_member_that_is_missing_or_of_another_kind_is_told(members: list, tmp_path: Path) -> None:
    uri = str(tmp_path)
    Ensemble(members, (0.5, 0.5)).save(uri)
    config = files.read_json(files.join(uri, "config.json"))
    files.write_json(files.join(uri, "config.json"), {**config, "members": ["sasrec", "item_knn"]})
    with pytest.raises(ArtifactError, match="There is no"):
        load(uri)
    files.write_json(files.join(uri, "config.json"), {**config, "members": ["sasrec"]})
    with pytest.raises(ArtifactError, match="damaged or of another version"):
        load(uri)
