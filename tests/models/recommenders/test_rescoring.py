"""The language model's beams in the order of two models, by brute force."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch

from models.common.recommender import best, masked_and_not, recommend_blocks
from models.generation.decoding import search
from models.generation.examples import Corpus
from models.generation.language import LanguageModel
from models.recommenders import language_model
from models.recommenders.artifacts import load
from models.recommenders.next_item import NextItemModel
from models.recommenders.product_codes import ProductCodes, ProductCodesConfig
from models.recommenders.product_quantizer import Quantized
from models.recommenders.rescoring import Rescored, write_rescored
from models.recommenders.sasrec import SasRec, SasRecConfig
from storage.errors import UserError
from tests.models.recommenders.test_language_model import HISTORIES, ITEMS, every_score, lists, made, recommender

__all__ = ["made"]  # a fixture
SIZE = {"dim": 16, "inner": 32, "length": 4}
COLD = 7  # without an event in training


def dense(kind: str) -> NextItemModel:
    torch.manual_seed(0)
    if kind == "sasrec":
        counts = torch.ones(ITEMS, dtype=torch.int64).index_fill(0, torch.tensor([COLD]), 0)
        return SasRec(SasRecConfig(**SIZE), counts).eval()
    return ProductCodes(
        ProductCodesConfig(**SIZE), Quantized(torch.randint(8, (ITEMS, 4)), torch.randn(4, 8, 4))
    ).eval()


@pytest.mark.parametrize("kind", ["sasrec", "product_codes"])
@pytest.mark.parametrize("beams", [20, ITEMS])
def test_the_items_of_the_beams_are_in_the_order_of_both_models(
    made: tuple[LanguageModel, Corpus], kind: str, beams: int
) -> None:
    generator, model, k = recommender(*made, beams), dense(kind), 6
    banned, filters = lists([[5, 5, 6], [], [0], [1, 2], []]), torch.arange(ITEMS) != 9
    own = every_score(*made).float()
    log_probs = torch.cat([model.scores(model._last(lists([history]))).log_softmax(-1) for history in HISTORIES])
    torch.testing.assert_close(log_probs, model.log_probs(lists(HISTORIES)))
    for chosen in ({}, {"banned": banned, "allowed": filters}):
        found = Rescored(generator, model).recommend(lists(HISTORIES), k=k, **chosen)
        kept = generator.recommend(lists(HISTORIES), k=beams, **chosen).items
        among = torch.zeros(len(kept), ITEMS + 1, dtype=torch.bool).scatter(1, kept % (ITEMS + 1), True)[:, :ITEMS]
        totals = (own + log_probs).masked_fill(~among, -torch.inf)
        wanted = best(totals.clone(), k=k)
        assert torch.equal(found.items, wanted.items)
        torch.testing.assert_close(found.scores, wanted.scores, rtol=1e-4, atol=1e-4)
        assert not (found.items == COLD).any() or kind == "product_codes"
        of_all = best(own + log_probs, k=k, **chosen)
        assert torch.equal(found.items[found.exact], of_all.items[found.exact])
        assert beams == 20 or found.exact.all()


def test_it_loads_by_itself(made: tuple[LanguageModel, Corpus], tmp_path: Path) -> None:
    generator, model = recommender(copy.deepcopy(made[0]).float(), made[1], 20), dense("sasrec")
    parts = [str(tmp_path / name) for name in ("generator", "dense")]
    generator.save(parts[0], generator.model.state_dict())
    model.save(parts[1], model.state_dict())
    write_rescored(str(tmp_path / "both"), *parts)
    for part in parts:
        shutil.rmtree(part)
    found, wanted = (
        one.recommend(lists(HISTORIES), k=5) for one in (load(str(tmp_path / "both")), Rescored(generator, model))
    )
    assert torch.equal(found.items, wanted.items)
    torch.testing.assert_close(found.scores, wanted.scores)
    with pytest.raises(UserError, match="set beams to at least 21"):
        Rescored(generator, model).recommend(lists(HISTORIES), k=21)
    shutil.rmtree(tmp_path / "both" / "dense")
    with pytest.raises(UserError, match=r"There is no recommender at .*dense"):
        load(str(tmp_path / "both"))


@pytest.mark.parametrize("beams", [20, 25, ITEMS])
def test_one_search_gives_the_lists_with_seen_items_and_without(
    made: tuple[LanguageModel, Corpus], beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_model, "USERS", 2)
    model = Rescored(recommender(*made, beams), dense("sasrec"))
    seen, searched = lists([[5, 5, 6], [], list(range(30)), [0], [1, 2]]), []
    monkeypatch.setattr(language_model, "search", lambda *args, **rest: searched.append(1) or search(*args, **rest))
    both = masked_and_not(model, lists(HISTORIES), k=10, banned=seen)
    assert len(searched) == 3  # blocks of at most two users
    for found, banned in zip(both, (seen, None), strict=True):
        wanted = recommend_blocks(model, lists(HISTORIES), k=10, banned=banned)
        assert torch.equal(found.items, wanted.items)
        torch.testing.assert_close(found.scores, wanted.scores)
        assert torch.equal(found.exact, wanted.exact)
