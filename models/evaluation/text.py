"""How near a written text comes to the true one: ROUGE-L and token F1."""

from __future__ import annotations

import re
from collections import Counter

_WORD = re.compile(r"\w+")


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
            length = before + 1 if word == other else max(longest[place - 1 : place + 1])
            before, longest[place] = longest[place], length
    return longest[-1]
