from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.decode import SMALL, Coarse, draw_model, draw_paths, prompts_of
from benchmarks.decode_peers import TransformersSearch, item_scores, plain_beam_search
from models.common.jagged import Jagged
from models.common.recommender import best
from models.generation.decoding import search
from models.generation.language import LanguageModel
from models.generation.trie import Trie

ITEMS = 60


def catalogue(seed: int = 0, kind: type[LanguageModel] = LanguageModel) -> tuple[LanguageModel, torch.Tensor, Trie]:
    """A model in float64, where the order of a sum does not show in the scores, and 60 items, some with a suffix."""
    paths, sizes = draw_paths(ITEMS, (4, 4, 4), seed=seed)
    assert paths[:, 3].max() > 0
    return draw_model(kind, SMALL, sizes, seed=seed).double(), paths, Trie.build(paths, sizes)


def padded_prompts(model: LanguageModel, paths: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Four histories of 0 to 3 items; what stands behind a prompt is noise."""
    histories = np.random.default_rng(seed).integers(ITEMS, size=(4, 3))
    return prompts_of(model.vocabulary, paths, histories), 1 + paths.shape[1] * torch.tensor([2, 0, 3, 1])


def every_score(
    model: LanguageModel, paths: torch.Tensor, prompts: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    rows = zip(prompts, lengths.tolist(), strict=True)
    return torch.stack([item_scores(model, paths, prompt[:length]) for prompt, length in rows])


def listed(rows: list[list[int]]) -> Jagged:
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    return Jagged(torch.tensor(list(itertools.chain.from_iterable(rows)), dtype=torch.int64), offsets)


user_items = st.lists(st.integers(0, ITEMS - 1), max_size=3 * ITEMS)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 5),
    coarse=st.booleans(),
    banned=st.none() | st.lists(user_items, min_size=4, max_size=4),
    allowed=st.none() | st.lists(st.booleans(), min_size=ITEMS, max_size=ITEMS),
    k=st.integers(1, ITEMS + 5),
)
def test_with_beams_for_all_the_best_are_those_of_brute_force(seed, coarse, banned, allowed, k):
    model, paths, trie = catalogue(seed, Coarse if coarse else LanguageModel)
    prompts, lengths = padded_prompts(model, paths, seed)
    seen = None if banned is None else listed(banned)
    open_ = None if allowed is None else torch.tensor(allowed)
    found = search(model, trie, prompts, lengths, beams=max(k, ITEMS), banned=[seen], allowed=open_)[0].best(k)
    in_order = torch.argsort(trie.ranks)  # so that of equal scores the lower path comes first
    scores = every_score(model, paths, prompts, lengths)[:, in_order]
    expected = best(
        scores,
        k=k,
        banned=None if seen is None else Jagged(trie.ranks[seen.values], seen.offsets),
        allowed=None if open_ is None else open_[in_order],
    )
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.items, torch.where(expected.items < 0, -1, in_order[expected.items]))
    assert found.exact.all()


@pytest.mark.parametrize("kind", [LanguageModel, Coarse])
@pytest.mark.parametrize("beams", [1, 5, 20])
def test_it_equals_a_plain_beam_search(kind, beams):
    ties = 0
    for seed in range(5):
        model, paths, trie = catalogue(seed, kind)
        prompts, lengths = padded_prompts(model, paths, seed)
        found = search(model, trie, prompts, lengths, beams=beams)[0].best(beams)
        for prompt, length, items, scores in zip(prompts, lengths, found.items, found.scores, strict=True):
            expected = plain_beam_search(model, paths, prompt[:length], beams=beams)
            assert list(map(tuple, paths[items].tolist())) == expected
            ties += int((scores.diff() == 0).any())
    assert (ties > 0) == (kind is Coarse and beams > 1)


def test_a_user_alone_gets_the_same():
    model, paths, trie = catalogue()
    prompts, lengths = padded_prompts(model, paths, 0)
    seen = [[3, 7, 11], [], list(range(40)), [5]]
    together = search(model, trie, prompts, lengths, beams=8, banned=[listed(seen)])[0].best(8)
    for user, items in enumerate(seen):
        alone = search(
            model,
            trie,
            prompts[user : user + 1, : lengths[user]],
            lengths[user : user + 1],
            beams=8,
            banned=[listed([items])],
        )[0].best(8)
        for one, many in zip(alone, together, strict=True):
            assert torch.equal(one[0], many[user])
        assert not set(items) & set(alone.items[0].tolist())


@settings(max_examples=30)
@given(
    seed=st.integers(0, 5),
    coarse=st.booleans(),
    banned=st.lists(st.none() | st.lists(user_items, min_size=4, max_size=4), min_size=1, max_size=3),
    beams=st.integers(1, ITEMS + 5),
)
def test_searches_side_by_side_find_what_each_finds_alone(seed, coarse, banned, beams):
    model, paths, trie = catalogue(seed, Coarse if coarse else LanguageModel)
    prompts, lengths = padded_prompts(model, paths, seed)
    seen = [None if each is None else listed(each) for each in banned]
    together = search(model, trie, prompts, lengths, beams=beams, banned=seen)
    for found, each in zip(together, seen, strict=True):
        [alone] = search(model, trie, prompts, lengths, beams=beams, banned=[each])
        for one, other in zip(found.best(beams), alone.best(beams), strict=True):
            assert torch.equal(one, other)


def test_narrow_beams_go_to_what_is_left():
    model, paths, trie = catalogue()
    prompts, lengths = padded_prompts(model, paths, 0)
    worst = every_score(model, paths, prompts, lengths)[0].argsort()[:3]
    allowed = torch.zeros(ITEMS, dtype=torch.bool).index_fill(0, worst, True)
    found = search(model, trie, prompts, lengths, beams=3, allowed=allowed)[0].best(3)
    assert torch.equal(found.items.sort().values, worst.sort().values.expand(4, 3))


def test_certified_lists_are_the_best_of_all():
    certified = []
    for seed in range(20):
        model, paths, trie = catalogue(seed)
        prompts, lengths = padded_prompts(model, paths, seed)
        found = search(model, trie, prompts, lengths, beams=12)[0].best(2)
        scores = every_score(model, paths, prompts, lengths)
        assert torch.equal(found.scores[found.exact], scores.topk(2).values[found.exact])
        certified.append(found.exact)
    share = torch.cat(certified).double().mean()
    assert 0 < share < 1


def test_transformers_finds_the_same():
    paths, sizes = draw_paths(2_000, (32, 32, 32), seed=0)
    model = draw_model(LanguageModel, SMALL, sizes, seed=0)
    prompts = prompts_of(model.vocabulary, paths, np.arange(12).reshape(4, 3))
    lengths = torch.full((4,), prompts.shape[1])
    found = search(model, Trie.build(paths, sizes), prompts, lengths, beams=20)[0].best(10)
    expected = TransformersSearch(model, paths)(prompts, beams=20, k=10)
    assert torch.allclose(found.scores, expected.scores, atol=1e-4)
    assert torch.equal(found.items, expected.items)


def test_nobody_and_nothing_left():
    model, paths, trie = catalogue()
    prompts, lengths = padded_prompts(model, paths, 0)
    assert search(model, trie, prompts[:0], lengths[:0], beams=5)[0].best(3).items.shape == (0, 3)
    found = search(model, trie, prompts, lengths, beams=5, allowed=torch.zeros(ITEMS, dtype=torch.bool))[0].best(3)
    assert (found.items == -1).all()
    assert (found.scores == -torch.inf).all()
