from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from models.qformer.tokens import EOS, PAD, SPECIAL, decode, encode


def test_a_text_ends_and_is_padded(tokenizer: Tokenizer) -> None:
    tokens = encode(tokenizer, ["red mug", "red mug " * 20, ""], 6)
    assert tokens.shape == (3, 6)
    assert (tokens == EOS).sum(1).tolist() == [1, 1, 1]  # also of one that is cut
    assert tokens[1, -1] == EOS
    assert tokens[2].tolist() == [EOS, *[PAD] * 5]


@given(st.text(max_size=12))
def test_any_text_comes_back_in_lower_case(tokenizer: Tokenizer, text: str) -> None:
    """No word is unknown, and no text makes a special token."""
    plain = tokenizer.normalizer.normalize_str(text)
    tokens = encode(tokenizer, [text], 80)
    assert decode(tokenizer, tokens) == [plain.strip()]
    inner = tokens[0, : tokens[0].tolist().index(EOS)]
    assert (inner >= SPECIAL).all()


def test_what_follows_the_end_is_not_read(tokenizer: Tokenizer) -> None:
    tokens = encode(tokenizer, ["blue lamp"], 10)
    spoilt = torch.cat([tokens, tokens], dim=1)
    assert decode(tokenizer, spoilt) == ["blue lamp"]
