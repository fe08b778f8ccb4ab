"""The bonus of items without an event: chosen by brute force on validation, kept by the artifact, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.common.recommender import Queries
from models.recommenders.artifacts import load
from models.recommenders.cold_bonus import BONUSES, fit_cold_bonus
from models.recommenders.fitting import NDCG, validate
from models.recommenders.next_item import NextItemModel
from models.recommenders.product_codes import ProductCodes, ProductCodesConfig
from models.recommenders.product_quantizer import Quantized
from models.recommenders.rpg import Rpg, RpgConfig
from models.recommenders.sasrec import SasRecConfig
from tests.models.recommenders.test_next_item import HISTORIES, ITEMS, SIZE, lists

COLD = [4, 17, 23]
COUNTS = torch.ones(ITEMS, dtype=torch.int64).index_fill(0, torch.tensor(COLD), 0)


def make(kind: str, **settings) -> NextItemModel:
    torch.manual_seed(0)
    codes, words = torch.randint(8, (ITEMS, 4)), torch.randn(4, 8, 4)
    if kind == "rpg":
        model: NextItemModel = Rpg(RpgConfig(**SIZE, **settings), codes, 8, COUNTS)
    else:
        model = ProductCodes(ProductCodesConfig(**SIZE, exact_items=1, **settings), Quantized(codes, words), COUNTS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def asked(target: torch.Tensor | None = None) -> Queries:
    """Sixty queries; without targets those that product codes with a bonus of 2 are always right about."""
    random = np.random.default_rng(0)
    histories = lists([random.integers(ITEMS, size=4).tolist() for _ in range(60)])
    if target is None:
        target = make("product_codes", cold_bonus=2.0).recommend(histories, k=1).items[:, 0]
    return Queries(np.arange(60), histories, target, lists([[]] * 60))


def test_validation_chooses_the_bonus_and_the_artifact_keeps_it(tmp_path: Path) -> None:
    valid, model = asked(), make("product_codes", cold_bonus="auto")
    gains = {each: validate(make("product_codes", cold_bonus=each), valid, filter_seen=True)[NDCG] for each in BONUSES}
    assert gains[0.0] < gains[2.0] == pytest.approx(1)
    bonus, cold = fit_cold_bonus(model, COUNTS, valid, filter_seen=True)
    assert gains[bonus] == max(gains.values())
    assert 0 < cold == sum(int(item) in COLD for item in valid.target) < 60
    model.save(str(tmp_path), model.state_dict())
    found = load(str(tmp_path))
    assert isinstance(found, ProductCodes)
    assert found.config.cold_bonus == bonus
    wanted = make("product_codes", cold_bonus=bonus).recommend(lists(HISTORIES), k=9)
    for each in (model, found):  # the same lists wherever they are asked for
        assert torch.equal(each.recommend(lists(HISTORIES), k=9).items, wanted.items)


def test_without_cold_targets_there_is_no_bonus_and_nothing_is_left_of_the_choice(tmp_path: Path) -> None:
    valid, model = asked(torch.full((60,), 3)), make("product_codes", cold_bonus="auto")
    assert fit_cold_bonus(model, COUNTS, valid, filter_seen=True) == (0.0, 0)
    assert "penalty" not in model.state_dict()
    model.save(str(tmp_path), model.state_dict())
    assert load(str(tmp_path)).recommend(lists(HISTORIES), k=3).exact is not None  # found by a search again


@pytest.mark.parametrize("kind", ["product_codes", "rpg"])
def test_a_bonus_is_added_to_cold_items_alone_beside_a_penalty(kind: str, tmp_path: Path) -> None:
    plain, model = make(kind), make(kind, cold_bonus=1.5)
    hidden = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    added = 1.5 * (COUNTS == 0)
    assert torch.equal(model.ranked(hidden), plain.scores(hidden) + added)
    assert model.loss(torch.tensor([[1, 4, 3]])) == plain.loss(torch.tensor([[1, 4, 3]]))
    model.save(str(tmp_path), model.state_dict())
    assert torch.equal(load(str(tmp_path)).ranked(hidden), model.ranked(hidden))
    counts = COUNTS * 20
    model.penalise(0.3, counts)  # as evaluate does
    wanted = plain.scores(hidden) - 0.3 * counts.clamp_min(1).log() + added
    torch.testing.assert_close(model.ranked(hidden), wanted)
    model.favour_cold(1.5, torch.ones(ITEMS))
    assert torch.equal(model.ranked(hidden), plain.ranked(hidden))  # where all items are warm


def test_sasrec_knows_no_cold_items() -> None:
    with pytest.raises(ValueError, match="leave cold_bonus out"):
        SasRecConfig(cold_bonus="auto")
