from __future__ import annotations

import functools
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.common.llama import Tiny
from models.evaluation.text import rouge_l, token_f1
from models.generation.backbones import build
from models.generation.greedy import greedy
from models.generation.language import LanguageModel
from models.generation.vocabulary import Vocabulary

WORDS = st.lists(st.sampled_from(["red", "blue", "hat", "shoe"]), max_size=6)
VOCABULARY = Vocabulary.trained((4, 3), ["a red hat"], 262)


@functools.cache
def model() -> LanguageModel:
    """A random model whose answers are of different lengths."""
    backbone = build(Tiny(layers=2, dim=16, heads=2, mlp=32, dropout=0.0), VOCABULARY, seed=5)
    with torch.no_grad():
        backbone.get_output_embeddings().weight.mul_(20)
    return LanguageModel(backbone, VOCABULARY).eval()


def longest_common(first: list[str], second: list[str]) -> int:
    def holds(words: tuple[str, ...]) -> bool:
        rest = iter(second)
        return all(word in rest for word in words)

    every = itertools.chain.from_iterable(itertools.combinations(first, size) for size in range(len(first) + 1))
    return max(len(words) for words in every if holds(words))


@given(WORDS, WORDS)
def test_rouge_l_equals_its_definition(first: list[str], second: list[str]) -> None:
    shared = longest_common(first, second)
    expected = float(first == second)
    if shared:
        precision, recall = shared / len(first), shared / len(second)
        expected = 2 * precision * recall / (precision + recall)
    assert rouge_l(" ".join(first), " ".join(second)) == pytest.approx(expected)


@given(WORDS, WORDS, st.randoms(use_true_random=False))
def test_token_f1_looks_at_no_order_and_is_at_least_rouge_l(first: list[str], second: list[str], random) -> None:
    shuffled = random.sample(first, len(first))
    score = token_f1(" ".join(first), " ".join(second))
    assert score == token_f1(" ".join(shuffled), " ".join(second)) == token_f1(" ".join(second), " ".join(first))
    assert score >= rouge_l(" ".join(first), " ".join(second))
    assert token_f1(" ".join(first), " ".join(shuffled)) == 1


def test_case_and_punctuation_do_not_count_and_repeated_words_do() -> None:
    assert rouge_l("Été: RED-shoe!", "été red, shoe") == 1
    assert token_f1("hat hat hat", "hat") == 0.5
    assert rouge_l("", "hat") == token_f1("...", "hat") == 0
    assert rouge_l("", "") == token_f1("", "") == 1


def alone(prompt: list[int], count: int) -> list[int]:
    """The likeliest next text tokens, each by a pass over everything before it."""
    tokens = list(prompt)
    for _ in range(count):
        logits = model().backbone(input_ids=torch.tensor([tokens])).logits[0, -1]
        tokens.append(int(logits[: VOCABULARY.sid_start].argmax()))
    return tokens[len(prompt) :]


@torch.no_grad()
def test_answers_are_those_of_each_prompt_alone() -> None:
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (24,), generator=random)
    prompts = torch.randint(VOCABULARY.size, (24, 8), generator=random)
    wanted = [alone(prompt[:length].tolist(), 5) for prompt, length in zip(prompts, lengths, strict=True)]
    eos = wanted[0][1]  # a token that some answers have, and others have not or later
    ended = [answer[: answer.index(eos)] if eos in answer else answer for answer in wanted]
    assert len({len(answer) for answer in ended}) > 1
    other = LanguageModel(model().backbone, Vocabulary((4, 3), VOCABULARY.text, VOCABULARY.sid_start, 0, 1, eos))
    found = greedy(other.eval(), prompts, lengths, max_tokens=5)
    assert [answer.tolist() for answer in found.values.split(found.offsets.diff().tolist())] == ended
