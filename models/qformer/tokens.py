"""Texts as tokens of a small byte-level BPE (Sennrich et al. 2016), so that no word is unknown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PAD, CLS, DEC, EOS = range(4)  # CLS begins a text that is encoded, DEC one that is to be written
SPECIAL = 4  # the tokenizer's own numbers come after them: no text can make one


def fit_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Fits a tokenizer of lower-case texts; with SPECIAL it makes `size` tokens at most."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size - SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def read_tokenizer(content: bytes) -> Tokenizer:
    """Returns the tokenizer that `Tokenizer.to_str` wrote.

    Raises:
        ValueError: it is none.
    """
    try:
        return Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises no other
        raise ValueError(f"no tokenizer: {error}") from error


def encode(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> torch.Tensor:
    """Returns the tokens of texts, int64 [N, length]: as many as there is room for, EOS, and PAD."""
    tokens = torch.full((len(texts), length), PAD)
    for row, found in zip(tokens, tokenizer.encode_batch(list(texts)), strict=True):
        ids = torch.tensor([*found.ids[: length - 1], EOS - SPECIAL]) + SPECIAL
        row[: len(ids)] = ids
    return tokens


def decode(tokenizer: Tokenizer, tokens: torch.Tensor) -> list[str]:
    """Returns the texts of tokens, int64 [N, T], each up to its first EOS."""
    rows = tokens.tolist()
    ended = (row[: row.index(EOS)] if EOS in row else row for row in rows)
    return [tokenizer.decode([token - SPECIAL for token in row if token >= SPECIAL]).strip() for row in ended]
