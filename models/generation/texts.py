"""Titles as a generator writes them, and how near they come to the true ones."""

from __future__ import annotations

import re
from collections import Counter

import torch
from torch.nn import functional

from models.generation.language import LanguageModel
from models.lists import Lists

_WORD = re.compile(r"\w+")


@torch.no_grad()
def greedy(model: LanguageModel, prompts: torch.Tensor, lengths: torch.Tensor, *, max_tokens: int) -> Lists:
    """What a model writes after each of B prompts, taking the likeliest text token until that is `eos`.

    Args:
        model: in evaluation mode.
        prompts: int64 [B, T] tokens, padded on the right.
        lengths: int64 [B], tokens of each, at least one.
        max_tokens: of an answer.

    Returns:
        B lists of tokens, without `eos`, on the CPU.
    """
    from transformers import DynamicCache

    eos, device, (count, width) = model.vocabulary.eos, prompts.device, prompts.shape
    cache, places = DynamicCache(), torch.arange(width + max_tokens, device=device)
    prompt_places = places[:width]
    causal = (prompt_places <= prompt_places[:, None]).expand(count, 1, width, width)
    hidden = model.hidden(prompts, prompt_places.expand(count, width), causal, cache)
    last = hidden[torch.arange(count, device=device), lengths - 1]
    visible = (places < lengths[:, None]) | (places >= width)  # the prompt without its padding, then the answer
    written = torch.full((count, max_tokens), eos, device=device)
    for step in range(max_tokens):
        if step:
            now = visible[:, None, None, : width + step]
            last = model.hidden(written[:, step - 1 : step], (lengths + step - 1)[:, None], now, cache)[:, 0]
        likeliest = model.text_logits(last).argmax(-1)
        ended = (written[:, :step] == eos).any(1)
        written[:, step] = likeliest.masked_fill(ended, eos)
        if (ended | (likeliest == eos)).all():
            break
    written = written.cpu()
    kept = (written == eos).cumsum(1) == 0
    return Lists(written[kept], functional.pad(kept.sum(1).cumsum(0), (1, 0)))


def rouge_l(text: str, truth: str) -> float:
    """ROUGE-L, the F measure of the longest common subsequence of words (Lin, "ROUGE", 2004, section 3.1), β being 1.

    Words are runs of letters, digits and underscores in lower case. Without words in either, 1; in one of them, 0.

    >>> rouge_l("Red shoes for men", "Red running shoes")
    0.5714285714285714
    """
    words, true_words = _words(text), _words(truth)
    return _f1(_common_subsequence(words, true_words), words, true_words)


def token_f1(text: str, truth: str) -> float:
    """F1 of the words that two texts share, in any order, each as often as both have it (SQuAD: Rajpurkar et al. 2016).

    Words as of `rouge_l`.

    >>> token_f1("shoes, red", "Red shoes")
    1.0
    """
    words, true_words = _words(text), _words(truth)
    return _f1((Counter(words) & Counter(true_words)).total(), words, true_words)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _f1(shared: int, words: list[str], true_words: list[str]) -> float:
    """2 P R / (P + R), where P and R are the shares of the words, and of the true ones, that are shared."""
    return 2 * shared / (len(words) + len(true_words)) if words or true_words else 1.0


def _common_subsequence(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence."""
    longest = [0] * (len(second) + 1)  # of what was read of `first`, with each beginning of `second`
    for word in first:
        before = 0  # the entry to the left, as it was for one word less
        for place, other in enumerate(second, start=1):
            before, longest[place] = (
                longest[place],
                before + 1 if word == other else max(longest[place - 1 : place + 1]),
            )
    return longest[-1]
