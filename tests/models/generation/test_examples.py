from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch

from models.common.jagged import Jagged, gather
from models.generation.examples import Corpus, Sampler, documents, item_texts, items_shown, prompts
from models.generation.tasks import SEQUENCE, Task, load_tasks
from models.generation.vocabulary import Vocabulary
from models.semantic_ids.suffixes import sid_string
from storage.errors import UserError

PATHS = torch.tensor([[0, 0], [0, 1], [1, 2], [2, 0], [2, 2]])
TITLES = ["Red shoe", None, "Blue\n hat ", "Hat <eos> <a_1>", "  "]
CAPTIONS = ["a red shoe", "a cup", None, "", "a scarf"]
SEQUENCES = [[0, 1, 2, 3, 0, 4, 2], [3], [4, 1], [], [1, 0]]
TASKS = load_tasks()
MAIN, TITLE_TO_SID, CAPTION_TO_TITLE = load_tasks(["sids_to_sid", "title_to_sid", "caption_to_title"])
ASKED = Task(name="asked", prompt="After {sids}, which item comes next?", target="sid")  # answers once alone
VOCABULARY = Vocabulary.trained((3, 3), [*filter(None, TITLES + CAPTIONS), *(task.prompt for task in TASKS)], 400)


def as_lists(rows: list[list[int]]) -> Jagged:
    values = [value for row in rows for value in row]
    return Jagged(torch.tensor(values, dtype=torch.int64), torch.tensor([0, *map(len, rows)]).cumsum(0))


def corpus(vocabulary: Vocabulary = VOCABULARY, **other) -> Corpus:
    texts = dict.fromkeys(("titles", "captions"), as_lists([[]] * len(PATHS)))
    if vocabulary.text is not None:
        texts = {"titles": item_texts(vocabulary, TITLES, max_tokens=30)}
        texts["captions"] = item_texts(vocabulary, CAPTIONS, max_tokens=30)
    parts = {"sequences": as_lists(SEQUENCES), "held_out": torch.zeros(len(PATHS), dtype=torch.bool), **texts}
    return Corpus(vocabulary, PATHS, **{**parts, **other})


def spelled(task: Task, target: int, history: list[int]) -> tuple[str, str]:
    """A prompt and what follows, put together from strings."""
    titles, captions = ([" ".join((text or "").split()) for text in texts] for texts in (TITLES, CAPTIONS))
    sid = [sid_string(path) for path in PATHS.tolist()]
    text = task.prompt.format(
        sids="".join(sid[item] for item in history),
        titles="".join(f"\n- {titles[item]}" for item in history if titles[item]),
        sid=sid[target],
        title=titles[target],
        caption=captions[target],
    )
    text = re.sub(r" (?=<[ab]_\d><|\n- )", "", text)  # no blank before a semantic ID or a line
    return text, sid[target] if task.target == "sid" else f" {titles[target]}"


def read(found: Jagged) -> list[tuple[str, str]]:
    """The texts of documents: what comes first, and the semantic ID or what else weighs something at the end."""
    assert found.weights is not None
    ends = found.offsets.diff().tolist()
    texts = []
    for tokens, weights in zip(found.values.split(ends), found.weights.split(ends), strict=True):
        count = 2 if tokens[-1] >= VOCABULARY.sid_start else int((weights > 0).sum())
        assert (weights[-count:] > 0).all()
        texts.append((VOCABULARY.decode(tokens[:-count].tolist()), VOCABULARY.decode(tokens[-count:].tolist())))
    return texts


def drawn(sampler: Sampler, **settings) -> list[tuple[str, str]]:
    return read(sampler.draw(0, documents=1000, **settings))


@pytest.mark.parametrize("task", [*TASKS, ASKED], ids=lambda task: task.name)
def test_documents_read_as_the_templates_say(task: Task) -> None:
    targets, histories = [0, 3, 2], [[1, 0, 2], [3], [4, 1, 3, 0]]
    if not task.over_histories:
        targets, histories = [0, 3][: 2 - ("caption" in task.inputs)], []
    found = documents(corpus(), task, torch.tensor(targets), as_lists(histories) if histories else None)
    expected = [spelled(task, target, history) for target, history in zip(targets, histories or [[]] * 9, strict=False)]
    assert read(found) == expected
    assert (found.values[found.offsets[:-1]] == VOCABULARY.bos).all()
    ends = found.values[found.offsets[1:] - 1] == VOCABULARY.eos
    assert ends.all() if task.target == "title" else not ends.any()
    answers = [len(history) for history in histories] if task == MAIN else [1] * len(targets)
    for weights, count in zip(found.weights.split(found.offsets.diff().tolist()), answers, strict=True):  # type: ignore[union-attr]
        assert float(weights.sum()) == pytest.approx(count)
        assert len(weights[weights > 0].unique()) == 1


@pytest.mark.parametrize("task", [*TASKS, SEQUENCE], ids=lambda task: task.name)
def test_prompts_are_the_beginnings_of_documents(task: Task) -> None:
    items, histories = torch.tensor([0, 3, 2]), as_lists([[1, 0, 2], [3], [4, 1, 3, 0]])
    tokens, lengths = prompts(corpus(), task, histories if task.over_histories else items)
    found = documents(corpus(), task, items, histories if task.over_histories else None)
    response = 2 if task.target == "sid" else None
    for row, length, document in zip(tokens, lengths, found.values.split(found.offsets.diff().tolist()), strict=True):
        assert row[:length].equal(document[:length])
        assert (row[length:] == VOCABULARY.pad).all()
        assert len(document) > length
        assert response is None or len(document) == length + response
    assert tokens.shape == (3, int(lengths.max()))


def test_users_without_a_history_have_a_prompt() -> None:
    tokens, lengths = prompts(corpus(), SEQUENCE, as_lists([[], [2]]))
    assert lengths.tolist() == [1, 3]
    assert tokens[:, 0].tolist() == [VOCABULARY.bos] * 2


def test_a_prompt_shows_the_last_items_that_have_what_it_reads() -> None:
    (titles,) = load_tasks(["titles_to_sid"])
    short, histories = corpus(history=2), as_lists([[3, 2, 1, 0, 4]])
    for task in (MAIN, ASKED):
        assert read(documents(short, task, torch.tensor([1]), histories)) == [spelled(task, 1, [0, 4])]
    assert read(documents(short, titles, torch.tensor([1]), histories)) == [spelled(titles, 1, [2, 0])]


@pytest.mark.parametrize("task", [ASKED, *load_tasks(["titles_to_title", "titles_to_sid"])], ids=lambda task: task.name)
def test_a_prompt_shows_the_last_items_that_a_row_has_room_for(task: Task) -> None:
    items = [3, 2, 0, 3, 2, 0]
    histories, before = as_lists([items, [2]]), len(items)
    answer = 2 if task.target == "sid" else 9  # the longest
    whole, _ = prompts(corpus(), task, histories)
    for room in range(whole.shape[1] + answer, 0, -1):
        small = corpus(tokens_per_row=room, max_text=8)
        tokens, lengths = prompts(small, task, histories)
        shown = [row[:length].tolist() for row, length in zip(tokens, lengths.tolist(), strict=True)]
        read_as = VOCABULARY.decode(shown[0])
        count = next((n for n in range(6, 0, -1) if read_as == spelled(task, 3, items[-n:])[0]), 0)
        assert count in (before, before - 1)
        assert count == 0 or len(shown[0]) + answer <= room
        if count < len(items):
            more, _ = prompts(corpus(history=count + 1), task, gather(histories, torch.tensor([0])))
            assert more.shape[1] + answer > room
        before = count
        trained = documents(small, task, torch.tensor([2, 3]), histories)
        for row, document in zip(shown, trained.values.split(trained.offsets.diff().tolist()), strict=True):
            assert document[: len(row)].tolist() == row
    assert before == 0


def test_where_every_item_is_an_answer_rows_decide_how_many_are_shown() -> None:
    alone = Vocabulary.sequence_only((3, 3))
    assert items_shown(corpus(alone, history=2, tokens_per_row=7), SEQUENCE) == 2
    for rows in (6, 5):
        few = corpus(alone, history=2, tokens_per_row=rows)
        assert items_shown(few, SEQUENCE) == 1
        assert Sampler(few, [SEQUENCE], seed=0).draw(0, documents=64).offsets.diff().max() <= rows
    with pytest.raises(UserError, match="Rows of 4 tokens have no room for two items: raise tokens_per_row to 5"):
        Sampler(corpus(alone, history=2, tokens_per_row=4), [SEQUENCE], seed=0)
    text = len(VOCABULARY.encode(["In order of time, the user chose"]).values)
    with pytest.raises(UserError, match=rf"no room for two items: raise tokens_per_row to {5 + text}"):
        Sampler(corpus(history=2, tokens_per_row=4 + text), TASKS, seed=0)


@pytest.mark.parametrize("task", [ASKED, *TASKS], ids=lambda task: task.name)
def test_rows_have_room_for_every_task_or_a_sentence_says_how_many_tokens_do(task: Task) -> None:
    with pytest.raises(
        UserError, match=r"^Rows of 3 tokens have no room for .*: raise tokens_per_row to \d+\.$"
    ) as said:
        Sampler(corpus(tokens_per_row=3, max_text=40), [task], seed=0)
    least = int(str(said.value).split()[-1].rstrip("."))
    with pytest.raises(UserError, match=f"raise tokens_per_row to {least}"):
        Sampler(corpus(tokens_per_row=least - 1, max_text=40), [task], seed=0)
    drawn = Sampler(corpus(tokens_per_row=least, max_text=40), [task], seed=0).draw(0, documents=64)
    assert drawn.offsets.diff().max() <= least


def test_texts_of_items_are_cut_and_stand_on_one_line() -> None:
    found = item_texts(VOCABULARY, TITLES, max_tokens=30)
    texts = [VOCABULARY.decode(part.tolist()) for part in found.values.split(found.offsets.diff().tolist())]
    assert texts == [" Red shoe", "", " Blue hat", " Hat <eos> <a_1>", ""]
    assert int(item_texts(VOCABULARY, TITLES, max_tokens=3).offsets.diff().max()) == 3
    assert item_texts(VOCABULARY, [None, ""], max_tokens=3).offsets.tolist() == [0, 0, 0]


@pytest.mark.parametrize("task", [*TASKS, ASKED], ids=lambda task: task.name)
def test_every_example_is_drawn_and_none_that_lacks_a_text(task: Task) -> None:
    titled, captioned = {0, 2, 3}, {0, 1, 4}
    if task == MAIN:  # one window of each history
        pairs = [(row[-1], row[:-1]) for row in SEQUENCES if len(row) > 1]
    elif task.over_histories:
        shown = titled if "titles" in task.inputs else set(range(5))
        pairs = [(row[at], row[:at]) for row in SEQUENCES for at in range(1, len(row)) if set(row[:at]) & shown]
    else:
        pairs = [(item, []) for item in range(5)]
        pairs = [pair for pair in pairs if "caption" not in task.columns or pair[0] in captioned]
    pairs = [pair for pair in pairs if "title" not in {*task.inputs, task.target} or pair[0] in titled]
    sampler = Sampler(corpus(), [task], seed=3)
    assert sampler.counts == (len(pairs),)
    counts = Counter(drawn(sampler))
    assert set(counts) == {spelled(task, *pair) for pair in pairs}
    if len(counts) == len(pairs):  # no two read alike: each has the same chance
        mean = 1000 / len(pairs)
        assert all(abs(count - mean) < 5 * mean**0.5 for count in counts.values())


def test_held_out_items_drop_out_of_the_tasks_over_items_alone() -> None:
    out = torch.tensor([True, False, False, False, False])
    counts = Sampler(corpus(), TASKS, seed=0).counts
    with_out = Sampler(corpus(held_out=out), TASKS[:7], seed=0)
    assert with_out.counts == counts[:4] + tuple(count - 1 for count in counts[4:7])
    shoe = spelled(TITLE_TO_SID, 0, [])
    assert shoe in drawn(Sampler(corpus(), [TITLE_TO_SID], seed=0))
    assert shoe not in drawn(Sampler(corpus(held_out=out), [TITLE_TO_SID], seed=0))


def test_a_task_without_examples_is_told() -> None:
    out = torch.tensor([True, False, False, False, False])  # the one item with a title and a caption
    with pytest.raises(UserError, match=r"learn task caption_to_title from \(no caption and title\): leave it out"):
        Sampler(corpus(held_out=out), [TITLE_TO_SID, CAPTION_TO_TITLE], seed=0)
    with pytest.raises(UserError, match=r"learn task sequence from \(no history of two items\)"):
        Sampler(corpus(sequences=as_lists([[1], []])), [SEQUENCE], seed=0)


def test_tasks_are_drawn_by_their_odds() -> None:
    sampler = Sampler(corpus(), TASKS, seed=5)

    def shares(**odds) -> list[float]:
        found = Counter(prompt.split("<a_")[0][:20] + response[:1] for prompt, response in drawn(sampler, **odds))
        return sorted(count / 1000 for count in found.values())

    # the first task reads like the fourth, the second like the third
    assert shares() == pytest.approx([1 / 8] * 4 + [1 / 4] * 2, abs=0.05)
    only = drawn(sampler, odds=[0, 0, 0, 0, 1, 0, 0, 0])
    assert set(only) == {spelled(TITLE_TO_SID, item, []) for item in (0, 2, 3)}


def test_a_task_is_drawn_as_often_as_its_share_says() -> None:
    """Within five standard deviations of a binomial, at every step anew."""
    sampler, content = Sampler(corpus(), TASKS, seed=5), "In order of time, the user chose<"
    odds = [0.6, *[0.4 / 7] * 7]
    counts = [
        sum(prompt.startswith(content) and answer[0] == "<" for prompt, answer in read(found))
        for found in (sampler.draw(step, documents=500, odds=odds) for step in range(4))
    ]
    assert all(abs(count - 300) < 5 * (500 * 0.6 * 0.4) ** 0.5 for count in counts)
    assert len(set(counts)) > 1
    again = Sampler(corpus(), TASKS, seed=5)  # a resumed fit begins anywhere
    assert all(map(torch.equal, again.draw(3, documents=500, odds=odds), sampler.draw(3, documents=500, odds=odds)))


def test_the_text_of_a_prompt_is_encoded_once_for_a_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    made, encoded, encode = corpus(replace(VOCABULARY)), list[str](), Vocabulary.encode
    monkeypatch.setattr(Vocabulary, "encode", lambda self, texts: encoded.extend(texts) or encode(self, texts))
    for seed in range(3):
        Sampler(made, TASKS, seed=seed).draw(0, documents=200)
        for task in TASKS:
            prompts(made, task, as_lists(SEQUENCES) if task.over_histories else torch.arange(5))
    assert set(encoded) > {"\n-"}
    assert len(encoded) == len(set(encoded))


def test_seed_and_step_decide_what_is_drawn() -> None:
    first, same, other = (Sampler(corpus(), TASKS, seed=seed) for seed in (1, 1, 2))
    for step in (0, 7):
        assert all(map(torch.equal, first.draw(step, documents=30), same.draw(step, documents=30)))
        assert read(first.draw(step, documents=30)) != read(other.draw(step, documents=30))
    assert read(first.draw(0, documents=30)) != read(first.draw(1, documents=30))


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_share_a_step(workers: int) -> None:
    sampler = Sampler(corpus(), TASKS, seed=1)
    shares = [read(sampler.draw(4, documents=31, rank=rank, workers=workers)) for rank in range(workers)]
    assert Counter(itertools.chain(*shares)) == Counter(read(sampler.draw(4, documents=31)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("history", [1, 2, 3, 20])
@pytest.mark.parametrize(("task", "vocabulary"), [(SEQUENCE, Vocabulary.sequence_only((3, 3))), (MAIN, VOCABULARY)])
def test_windows_of_sequences_ask_for_every_item_but_the_first_once(
    history: int, task: Task, vocabulary: Vocabulary
) -> None:
    alone = corpus(vocabulary, history=history)
    sampler = Sampler(alone, [task], seed=0)
    text = [] if task == SEQUENCE else vocabulary.encode(["In order of time, the user chose"]).values.tolist()
    windows = [tuple(row[max(0, end - history - 1) : end]) for row in SEQUENCES for end in range(len(row), 1, -history)]
    assert sampler.counts == (len(windows),)
    assert sum(len(window) - 1 for window in windows) == sum(max(0, len(row) - 1) for row in SEQUENCES)
    found = sampler.draw(0, documents=200)
    ends = found.offsets.diff().tolist()
    seen = set()
    for tokens, weights in zip(found.values.split(ends), found.weights.split(ends), strict=True):  # type: ignore[union-attr]
        before = [alone.vocabulary.bos, *text]
        assert tokens[: len(before)].tolist() == before
        codes = tokens[len(before) :].view(-1, 2) - torch.tensor([alone.vocabulary.start(0), alone.vocabulary.start(1)])
        seen.add(tuple((codes[:, None] == PATHS).all(2).nonzero()[:, 1].tolist()))
        blank = len(before) + 2
        assert weights.tolist() == [0.0] * blank + [0.5] * (len(tokens) - blank)  # each item weighs 1
    assert seen == set(windows)
