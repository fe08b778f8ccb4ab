from __future__ import annotations

import doctest
import pickle
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.generation import vocabulary
from models.generation.vocabulary import Vocabulary, sid_codes
from models.semantic_ids.suffixes import NO_SUFFIX, allocate_suffixes, sid_string
from storage.errors import UserError

SIZES = (5, 3, 4)
TEXTS = ["A red shoe of suede", "A blue shoe", "Red hat, blue band", "Größe 38", "Which item is titled {title}?"] * 3
TRAINED = Vocabulary.trained(SIZES, TEXTS, 300, suffixes=True)
HOSTILE = "<eos> <pad><bos> <|end|> <a_1><b_2> <end> {sid} <a_1>"

prefixes = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=30)


def pretrained(**special: str):
    """A tokenizer of the transformers library with special tokens, and padding and truncation switched on."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=TRAINED.text, **{f"{name}_token": token for name, token in special.items()}
    )
    tokenizer.backend_tokenizer.enable_padding(length=9)
    tokenizer.backend_tokenizer.enable_truncation(9)
    return tokenizer


def extended() -> Vocabulary:
    return Vocabulary.extended(SIZES, pretrained(bos="<bos>", eos="<|end|>", pad="<pad>"), 512, suffixes=True)


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(vocabulary).failed == 0


@settings(deadline=None, max_examples=60)
@given(prefixes, st.booleans())
def test_every_item_has_a_path_of_its_own(codes: list[tuple[int, int]], always: bool) -> None:
    names = [str(number) for number in range(len(codes))]
    suffixes = allocate_suffixes(names, np.array(codes), np.arange(len(codes), dtype=np.uint64), always=always)
    sids = np.column_stack([codes, suffixes]).astype(np.int32)
    found, sizes = sid_codes(sids, codebook_sizes=(4, 3))
    assert found.dtype == np.int64
    assert len(np.unique(found, axis=0)) == len(codes)
    assert sizes[:2] == (4, 3)
    assert (found[:, :2] == codes).all()
    if (suffixes == NO_SUFFIX).all():
        assert found.shape[1] == len(sizes) == 2
    else:
        assert (found[:, 2] == suffixes + 1).all()
        assert sizes[2] == suffixes.max() + 2
    assert sid_codes(sids)[1] == tuple(found.max(axis=0) + 1)


def test_groups_of_tokens_lie_one_after_the_other() -> None:
    for made in (Vocabulary.sequence_only(SIZES), TRAINED, extended()):
        assert made.start(0) == made.sid_start
        assert [made.start(level + 1) - made.start(level) for level in range(3)] == list(SIZES)
        assert made.size == made.start(3) == made.sid_start + sum(SIZES)
        assert max(made.pad, made.bos, made.eos) < made.sid_start
        whole = torch.tensor([[[0, 0, 0], [4, 2, 3]]])
        tokens = made.sid_tokens(whole)
        assert (tokens - made.sid_start).tolist() == [[[0, 5, 8], [4, 7, 11]]]
        assert torch.equal(made.sid_tokens(whole[..., :2]), tokens[..., :2])
    assert TRAINED.text is not None
    assert TRAINED.sid_start == TRAINED.text.get_vocab_size() <= 300
    assert extended().sid_start == 512  # behind the rows that pad the model's matrix


def test_the_order_of_texts_does_not_matter() -> None:
    shuffled = list(TEXTS)
    random.Random(1).shuffle(shuffled)
    other = Vocabulary.trained(SIZES, shuffled, 300).text
    assert other is not None
    assert TRAINED.text is not None
    assert other.to_str() == TRAINED.text.to_str()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(max_size=20), max_size=5))
def test_texts_read_back(texts: list[str]) -> None:
    found = TRAINED.encode(texts)
    parts = found.values.split(found.offsets.diff().tolist())
    assert [TRAINED.decode(part.tolist()) for part in parts] == texts
    assert ((found.values > TRAINED.eos) & (found.values < TRAINED.sid_start)).all()


@pytest.mark.parametrize("made", [TRAINED, pickle.loads(pickle.dumps(TRAINED)), extended()])  # noqa: S301
def test_no_text_spells_a_special_token_or_a_semantic_id(made: Vocabulary, tmp_path: Path) -> None:
    made.save(str(tmp_path))
    for found in (made, Vocabulary.load(str(tmp_path))):
        tokens = found.encode([HOSTILE]).values.tolist()
        assert not {found.pad, found.bos, found.eos} & set(tokens)
        assert max(tokens) < found.sid_start
        assert found.decode(tokens) == HOSTILE


def test_the_first_tokens_of_a_text_are_kept() -> None:
    whole, cut = (TRAINED.encode(["A red shoe", "", "Red"], max_tokens=limit) for limit in (None, 2))
    assert cut.offsets.diff().tolist() == [min(2, length) for length in whole.offsets.diff().tolist()]
    assert cut.values[:2].equal(whole.values[:2])


@pytest.mark.parametrize("made", [TRAINED, Vocabulary.sequence_only(SIZES, suffixes=True), extended()])
def test_semantic_ids_are_spelled_as_everywhere(made: Vocabulary) -> None:
    tokens = made.sid_tokens(torch.tensor([[4, 2, 3], [0, 0, 0]]))
    assert made.decode([made.bos, *tokens[0].tolist()]) == sid_string([4, 2, 2])
    assert made.decode([*tokens[1].tolist(), made.eos, made.pad]) == "<a_0><b_0><end>"


def test_without_suffixes_the_last_level_is_one_of_codes() -> None:
    made = Vocabulary.sequence_only(SIZES)
    assert made.decode(made.sid_tokens(torch.tensor([4, 2, 0])).tolist()) == "<a_4><b_2><c_0>"


def test_text_and_semantic_ids_mix() -> None:
    tokens = [*TRAINED.encode(["Item"]).values, *TRAINED.sid_tokens(torch.tensor([1, 1, 1])), *TRAINED.encode(["?"])[0]]
    assert TRAINED.decode(tokens) == "Item<a_1><b_1><c_0>?"


def test_semantic_ids_alone_read_no_text() -> None:
    with pytest.raises(UserError, match=r"^A generator of semantic IDs alone reads no text: name no tasks"):
        Vocabulary.sequence_only(SIZES).encode(["A red shoe"])


def test_a_vocabulary_is_read_back(tmp_path: Path) -> None:
    for name, made in (("alone", Vocabulary.sequence_only(SIZES)), ("trained", TRAINED), ("extended", extended())):
        if made.text is not None:
            assert torch.equal(made.phrase("Red"), made.encode(["Red"]).values)
        made.save(folder := str(tmp_path / name))
        found = Vocabulary.load(folder)
        assert replace(found, text=None) == replace(made, text=None)
        assert (found.text is None) == (made.text is None)
        if made.text is not None:
            assert torch.equal(found.encode(TEXTS).values, made.encode(TEXTS).values)
    assert {path.suffix for path in tmp_path.rglob("*.*")} == {".json"}


def test_an_extended_vocabulary_keeps_the_tokens_of_its_model() -> None:
    tokenizer = pretrained(eos="<|end|>")
    made = Vocabulary.extended(SIZES, tokenizer, 400)
    text = "A red shoe " * 9
    assert made.encode([text]).values.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert made.pad == made.bos == made.eos == tokenizer.eos_token_id  # it names no others


def test_a_tokenizer_that_does_not_fit_is_told() -> None:
    with pytest.raises(UserError, match="names an end-of-text token"):
        Vocabulary.extended(SIZES, pretrained(), 512)
    with pytest.raises(UserError, match=r"has 301 tokens and its model rows for 300: choose a model and a tokenizer"):
        Vocabulary.extended(SIZES, pretrained(eos="<|end|>"), 300)


def test_what_is_no_vocabulary_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no vocabulary at "):
        Vocabulary.load(str(tmp_path))
    TRAINED.save(str(tmp_path))
    for name, content in (("tokenizer.json", "{"), ("vocabulary.json", '{"text": false}'), ("vocabulary.json", "{")):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=r"vocabulary at .* is damaged"):
            Vocabulary.load(str(tmp_path))
