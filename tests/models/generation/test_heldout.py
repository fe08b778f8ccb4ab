from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.common.jagged import Jagged
from models.common.llama import Tiny
from models.common.recommender import Queries
from models.generation.backbones import build
from models.generation.examples import Corpus, documents, item_texts
from models.generation.heldout import Examples, choose, losses, task_losses, task_scores
from models.generation.language import LanguageModel
from models.generation.packing import pack
from models.generation.tasks import SEQUENCE, Task, load_tasks
from models.generation.trie import Trie
from models.generation.vocabulary import Vocabulary

TASKS = {task.name: task for task in load_tasks()}
SHORT = (  # quick to learn
    Task(name="short_to_sid", prompt="{caption}", target="sid"),
    Task(name="short_to_title", prompt="{caption}=", target="title"),
)
WORDS = ["oak", "ash", "elm", "fir", "yew", "box", "fig", "bay", "lime", "pine", "teak", "beech", "cork", "palm"]
ITEMS = len(WORDS)
TITLES = [f"Chair of {word}" for word in WORDS[:-1]] + [None]
CAPTIONS = [None, *(f"grain like {word}" for word in WORDS[1:])]
PATHS = torch.arange(ITEMS).flip(0)[:, None]  # of one level, so that a beam search of ten beams finds the first ten
VOCABULARY = Vocabulary.trained((ITEMS,), [*TITLES[:-1], *CAPTIONS[1:]], 300)


def lists(rows: list[list[int]]) -> Jagged:
    return Jagged(torch.tensor([row for one in rows for row in one]), torch.tensor([0, *map(len, rows)]).cumsum(0))


CORPUS = Corpus(
    VOCABULARY,
    PATHS,
    titles=item_texts(VOCABULARY, TITLES, max_tokens=20),
    captions=item_texts(VOCABULARY, CAPTIONS, max_tokens=20),
    sequences=lists([[0, 1]]),
    held_out=torch.ones(ITEMS, dtype=torch.bool),
)
HISTORIES, TARGETS = lists([[0, 1, 2], [13], [5], [3, 13, 3]]), torch.tensor([4, 5, 13, 6])
QUERIES = Queries(np.arange(4), HISTORIES, TARGETS, lists([[]] * 4))
TRIE = Trie.build(PATHS, (ITEMS,))


def new_model() -> LanguageModel:
    backbone = build(Tiny(layers=2, dim=32, heads=2, mlp=64, dropout=0.0), VOCABULARY, seed=1)
    return LanguageModel(backbone, VOCABULARY).eval()


@functools.cache
def taught() -> LanguageModel:
    """A model that has the items' captions by heart."""
    model = new_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    found = [documents(CORPUS, task, torch.arange(1, ITEMS - 1)) for task in SHORT]
    batches = [pack(part, tokens_per_row=64, rows=20, pad=VOCABULARY.pad)[0] for part in found]
    for _ in range(120):
        optimizer.zero_grad()
        sum(model.loss(batch) for batch in batches).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("caption_to_sid", set(range(1, ITEMS))),
        ("caption_to_title", set(range(1, ITEMS - 1))),
        ("sid_to_title", set(range(ITEMS - 1))),
        ("sids_to_sid", {4, 5, 13, 6}),
        ("sids_to_title", {4, 5, 6}),  # 13 has no title
        ("titles_to_sid", {4, 13, 6}),  # the second user has met nothing that has one
        ("titles_to_title", {4, 6}),
    ],
)
def test_examples_have_what_a_task_reads_and_writes(name: str, targets: set[int]) -> None:
    found = choose(CORPUS, TASKS[name], QUERIES, most=100, seed=0)
    assert sorted(found.targets.tolist()) == sorted(targets)
    few = choose(CORPUS, TASKS[name], QUERIES, most=2, seed=0)
    assert few.targets.tolist() == found.targets[:2].tolist()
    if found.histories is not None:
        of = dict(zip([4, 5, 13, 6], [[0, 1, 2], [13], [5], [3, 13, 3]], strict=True))
        histories = [part.tolist() for part in found.histories.values.split(found.histories.offsets.diff().tolist())]
        assert histories == [of[target] for target in found.targets.tolist()]


@pytest.mark.parametrize(
    "task", [task for task in TASKS.values() if not task.every_position], ids=lambda task: task.name
)
def test_a_loss_is_that_of_training(task: Task) -> None:
    model, examples = new_model(), choose(CORPUS, task, QUERIES, most=100, seed=0)
    found = losses(model, CORPUS, task, examples)
    assert len(found) > 1
    for row in range(len(found)):
        one = examples.take(torch.tensor([row]))
        (batch,) = pack(documents(CORPUS, task, *one), tokens_per_row=256, rows=1, pad=VOCABULARY.pad)
        assert float(found[row]) == pytest.approx(model.loss(batch).item(), abs=1e-4)
    mean = task_losses(model, CORPUS, [task], QUERIES)[task.name]
    assert mean == pytest.approx(float(found.mean()), abs=1e-5)


@torch.no_grad()
def test_of_every_position_the_last_one_counts() -> None:
    model, examples = new_model(), Examples(torch.tensor([4, 5]), lists([[0, 1, 2], [13]]))
    expected = []
    for history, target in (([0, 1, 2], 4), ([13], 5)):
        tokens = torch.tensor([VOCABULARY.bos, *VOCABULARY.sid_tokens(PATHS[history]).flatten().tolist()])
        logits = model.backbone(input_ids=tokens[None]).logits[0, -1, VOCABULARY.sid_start :]
        expected.append(-float(logits.log_softmax(0)[PATHS[target, 0]]))
    assert losses(model, CORPUS, SEQUENCE, examples).tolist() == pytest.approx(expected, abs=1e-5)


def test_exact_rates_are_those_of_ranking_all_items() -> None:
    model, task, ranks = new_model(), TASKS["title_to_sid"], []
    scores = task_scores(model, TRIE, CORPUS, [task], QUERIES)["title_to_sid"]
    for item, title in enumerate(TITLES[:-1]):
        asked = replace(CORPUS, titles=item_texts(VOCABULARY, [title] * ITEMS, max_tokens=20))
        loss = losses(model, asked, task, Examples(torch.arange(ITEMS), None))
        ranks.append(1 + int((loss < loss[item]).sum()))
    assert scores["examples"] == len(ranks)
    assert scores["exact@1"] == pytest.approx(sum(rank == 1 for rank in ranks) / len(ranks))
    assert scores["exact@10"] == pytest.approx(sum(rank <= 10 for rank in ranks) / len(ranks))
    assert scores["log_probability"] == -scores["loss"]
    low, high = scores["exact@10_interval"]
    assert 0 < low <= scores["exact@10"] <= high <= 1


def test_a_model_that_reads_captions_gains_by_them() -> None:
    inner = torch.ones(ITEMS, dtype=torch.bool).index_fill(0, torch.tensor([0, ITEMS - 1]), False)
    scores = task_scores(taught(), TRIE, replace(CORPUS, held_out=inner), SHORT, QUERIES)
    item, title = scores["short_to_sid"], scores["short_to_title"]
    assert item["exact@1"] == 1
    assert item["shuffled"]["exact@1"] == 0
    assert item["gain"]["exact@1_interval"] == [1, 1]
    assert item["gain"]["loss_interval"][1] < 0
    assert title["rouge_l"] == title["token_f1"] == 1
    assert title["shuffled"]["token_f1"] == pytest.approx(2 / 3)  # "chair of" another wood
    assert title["gain"]["rouge_l"] == pytest.approx(1 / 3)


def test_captions_that_say_nothing_gain_nothing() -> None:
    captions = item_texts(VOCABULARY, ["a chair"] * ITEMS, max_tokens=20)
    corpus = replace(CORPUS, captions=captions)
    found = task_scores(taught(), TRIE, corpus, SHORT[:1], QUERIES)["short_to_sid"]
    assert found["gain"]["loss"] == found["gain"]["exact@1"] == 0
    assert found["gain"]["loss_interval"] == [0, 0]


def test_a_task_without_examples_says_so() -> None:
    corpus = replace(CORPUS, held_out=torch.arange(ITEMS) == 13)
    tasks = [TASKS["sid_to_title"]]
    assert task_scores(new_model(), TRIE, corpus, tasks, QUERIES) == {"sid_to_title": {"examples": 0}}
    assert task_losses(new_model(), corpus, tasks, QUERIES) == {}
