from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch

from benchmarks.decode import SMALL, draw_model, draw_paths
from benchmarks.decode_peers import item_scores
from models.common.jagged import Jagged
from models.common.recommender import best, masked_and_not, recommend_blocks
from models.generation.decoding import search
from models.generation.examples import Corpus
from models.generation.language import LanguageModel
from models.generation.trie import Trie
from models.generation.vocabulary import Vocabulary
from models.recommenders import language_model
from models.recommenders.artifacts import load
from models.recommenders.language_model import LanguageModelRecommender
from models.recommenders.settings import LanguageModelSettings
from storage import files
from storage.errors import UserError

ITEMS, HISTORY = 40, 3
HISTORIES = [[3, 7, 1, 9, 2], [], [0, 0], [39], [1, 2, 3, 4]]


def lists(rows: list[list[int]]) -> Jagged:
    values = torch.tensor(list(itertools.chain.from_iterable(rows)), dtype=torch.int64)
    return Jagged(values, torch.tensor([0, *map(len, rows)]).cumsum(0))


@pytest.fixture(scope="module")
def made() -> tuple[LanguageModel, Corpus]:
    """A random model in float64, where the order of a sum does not show in the scores."""
    found, sizes = draw_paths(ITEMS, (4, 4, 4), seed=0)
    model = draw_model(LanguageModel, SMALL, sizes, seed=0).double()
    nothing = lists([[]] * ITEMS)
    held_out = torch.zeros(ITEMS, dtype=torch.bool)
    return model, Corpus(model.vocabulary, found, nothing, nothing, lists([]), held_out, HISTORY)


def every_score(model: LanguageModel, corpus: Corpus) -> torch.Tensor:
    """By brute force, one user after the other, of the last items of each history."""
    rows = []
    for history in HISTORIES:
        shown = corpus.sid_codes[torch.tensor(history[-HISTORY:], dtype=torch.int64)]
        tokens = model.vocabulary.sid_tokens(shown).flatten()
        rows.append(item_scores(model, corpus.sid_codes, torch.cat([torch.tensor([model.vocabulary.bos]), tokens])))
    return torch.stack(rows)


def recommender(model: LanguageModel, corpus: Corpus, beams: int) -> LanguageModelRecommender:
    trie = Trie.build(corpus.sid_codes, corpus.vocabulary.sizes)
    return LanguageModelRecommender(model, corpus, trie, LanguageModelSettings(beams=beams, history=HISTORY))


@pytest.mark.parametrize("block", [64, 2])
def test_everybody_gets_the_best_of_brute_force_in_the_order_asked(
    made: tuple[LanguageModel, Corpus], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_model, "USERS", block)
    model, corpus = made
    asked = recommender(model, corpus, ITEMS + 5)
    banned = lists([[5, 5, 6], [], list(range(38)), [0], [1, 2]])
    allowed = torch.rand(ITEMS, generator=torch.Generator().manual_seed(0)) < 0.8
    every = every_score(model, corpus)
    for filters in ({}, {"banned": banned, "allowed": allowed}):
        wanted = best(every.clone(), k=ITEMS + 2, **filters)
        found = asked.recommend(lists(HISTORIES), k=ITEMS + 2, **filters)
        torch.testing.assert_close(found.scores, wanted.scores)
        assert torch.equal(found.items.sort().values, wanted.items.sort().values)
        own = every.gather(1, found.items.clamp_min(0)).masked_fill(found.items < 0, -torch.inf)
        torch.testing.assert_close(found.scores, own)
        assert found.exact is not None
        assert found.exact.tolist() == [True] * len(HISTORIES)  # every item is in the beams


def test_nobody_gets_nothing_and_too_few_beams_are_explained(made: tuple[LanguageModel, Corpus]) -> None:
    asked = recommender(*made, 20)
    found = asked.recommend(lists([]), k=3, banned=lists([]))
    assert found.items.shape == found.scores.shape == (0, 3)
    with pytest.raises(UserError, match="set beams to at least 21"):
        asked.recommend(lists(HISTORIES), k=21)


def test_a_list_is_exact_where_no_pruned_prefix_could_hold_a_better_item(made: tuple[LanguageModel, Corpus]) -> None:
    model, corpus = made
    found, every = recommender(model, corpus, 20).recommend(lists(HISTORIES), k=2), every_score(model, corpus)
    assert found.exact is not None
    right = best(every, k=2).items == found.items
    assert right[found.exact].all()
    assert recommender(model, corpus, 20).recommend(lists([]), k=2).items.shape == (0, 2)


def test_an_artifact_holds_all_that_decoding_needs(
    made: tuple[LanguageModel, Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, corpus = made
    fitted = recommender(copy.deepcopy(model).float(), corpus, 20)
    with pytest.raises(UserError, match="There is no recommender"):
        load(str(tmp_path))
    fitted.save(str(tmp_path), fitted.model.state_dict())
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    monkeypatch.setattr(files, "read_table", None)  # no Parquet is read
    monkeypatch.setattr(Vocabulary, "trained", None)  # and no tokenizer trained
    loaded = load(str(tmp_path))
    assert isinstance(loaded, LanguageModelRecommender)
    assert loaded.settings == fitted.settings
    wanted, found = (one.recommend(lists(HISTORIES), k=5) for one in (fitted, loaded))
    assert torch.equal(found.items, wanted.items)
    torch.testing.assert_close(found.scores, wanted.scores)
    (tmp_path / "model" / "vocabulary.json").unlink()
    with pytest.raises(UserError, match="There is no vocabulary"):
        load(str(tmp_path))


@pytest.mark.parametrize("beams", [20, 25, ITEMS])
def test_one_search_gives_the_lists_with_seen_items_and_without(
    made: tuple[LanguageModel, Corpus], beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_model, "USERS", 2)
    model = recommender(*made, beams)
    seen, searched = lists([[5, 5, 6], [], list(range(30)), [0], [1, 2]]), []
    monkeypatch.setattr(language_model, "search", lambda *args, **rest: searched.append(1) or search(*args, **rest))
    both = masked_and_not(model, lists(HISTORIES), k=10, banned=seen)
    assert len(searched) == 3  # blocks of at most two users
    for found, banned in zip(both, (seen, None), strict=True):
        wanted = recommend_blocks(model, lists(HISTORIES), k=10, banned=banned)
        assert torch.equal(found.items, wanted.items)
        torch.testing.assert_close(found.scores, wanted.scores)
        assert torch.equal(found.exact, wanted.exact)
