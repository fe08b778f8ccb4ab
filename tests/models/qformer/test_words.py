from __future__ import annotations

import numpy as np
import pytest
import torch

from models.qformer.sentences import sentences, text_of
from models.qformer.words import seen_words, split_words


def test_words_that_pictures_tell_are_found_and_no_others() -> None:
    """Half of the titles have a word that goes by the features, and one that goes by a coin."""
    rng = np.random.default_rng(0)
    features = torch.randn(400, 20, generator=torch.Generator().manual_seed(0))
    seen = ["round" if row[0] > 0 else "square" for row in features]
    drawn = [f"{shape} {rng.choice(['acme', 'bolt'])} {rng.integers(1000, 9999)}" for shape in seen]
    drawn[:3] = [f"{text} rare" for text in drawn[:3]]
    assert set(seen_words(drawn, features)) == {"round", "square"}


@pytest.mark.parametrize("seed", range(5))
def test_texts_that_say_nothing_of_the_pictures_have_no_such_word(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = torch.randn(300, 50, generator=torch.Generator().manual_seed(seed))
    words = [f"w{number}" for number in range(30)]
    assert seen_words([" ".join(rng.choice(words, 4)) for _ in range(300)], features) == {}


def test_a_word_of_few_items_is_found_in_whatever_order_they_come() -> None:
    """Every twentieth item is blue, which one feature tells."""
    rng = np.random.default_rng(0)
    blue = np.arange(700) % 20 == 0
    features = rng.normal(size=(700, 20))
    features[:, 0] += 2 * blue
    texts = np.where(blue, "blue thing", "thing")
    for _ in range(20):
        order = rng.permutation(700)
        assert "blue" in seen_words(texts[order].tolist(), torch.from_numpy(features[order]).float())


def test_brands_and_what_is_not_seen_are_left_out() -> None:
    attributes = [
        ("brand", "Acme Works"),
        ("Colour", "Navy Blue"),
        ("article_type", "Casual Shoes"),
        ("usage", "Sports"),
    ]
    title = "Acme Men's Speed 300 casual shoes with laces"
    assert "acme" not in text_of(title, attributes)
    seen = {"navy", "blue", "casual", "shoes", "laces", "sports"}
    said = sentences(title, attributes, seen)
    assert said[0] == "Navy blue casual shoes, laces, sports."
    assert said[1:] == ["Casual shoes laces.", "Casual shoes in navy blue."]
    assert (
        sentences("Red Tape Men Red Shoes", [("brand", "Red Tape"), ("Base Colour", "Red")], {"red", "shoes"})[0]
        == "Red, shoes."
    )
    assert sentences(None, [("Farbe", "Rot"), ("Produktart", "Schuhe")], {"rot", "schuhe"}) == ["Rot schuhe."]
    many = " ".join(f"w{number}" for number in range(40))
    assert sentences(many, [], set(many.split())) == ["W0 w1 w2 w3 w4 w5 w6 w7 w8 w9."]
    for sentence in said:
        assert not {"acme", "men's", "speed", "300", "with"} & set(sentence.lower().split())


def test_words_keep_their_marks_in_every_script() -> None:
    assert split_words("लाल जूते, Men's T-Shirt – café ①") == ["लाल", "जूते", "men's", "t-shirt", "café", "1"]


def test_an_item_of_which_nothing_is_seen_has_no_sentence() -> None:
    assert sentences("Speed 300", [("colour", "Blue")], {"red"}) == []
    assert sentences(None, [], {"red"}) == []
    assert sentences("A red one", [], {"red"}) == ["Red."]
