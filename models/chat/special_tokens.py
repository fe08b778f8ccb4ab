"""Disarm special tokens in catalogue texts, which could end a turn or announce a picture."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def special_tokens(tokenizer: PreTrainedTokenizerBase | None) -> re.Pattern[str] | None:
    """Returns a pattern that matches the tokenizer's special tokens; None where it has none."""
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special] if tokenizer else []
    longest_first = sorted((token for token in tokens if token.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def plain(text: str, special: re.Pattern[str] | None) -> str:
    """Strips the brackets from special tokens in a text, so that they become plain words."""
    return special.sub(lambda token: re.sub(r"\W", "", token[0]) or " ", text) if special else text
