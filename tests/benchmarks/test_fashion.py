from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from PIL import Image

from benchmarks import fashion


@pytest.mark.parametrize("kind", fashion.KINDS)
def test_every_type_and_colour_is_named_by_its_own_phrase_alone(kind):
    words = fashion.lexicon(kind)
    for number, name in enumerate(words.names):
        assert words.said(f"A picture of {words.phrase(name)}.") == (number, words.families[number])


@pytest.mark.parametrize(
    ("caption", "kind", "name"),
    [
        ("Navy blue casual shoes for men.", "colour", "Navy Blue"),
        ("Navy blue casual shoes for men.", "type", "Casual Shoes"),
        ("Two black T-Shirts and a belt", "type", "Tshirts"),
        ("A kurta set, not a kurta", "type", "Kurta Sets"),
    ],
)
def test_the_first_and_longest_phrase_counts(caption, kind, name):
    assert fashion.lexicon(kind).names[fashion.lexicon(kind).said(caption)[0]] == name


def test_a_synonym_counts_for_the_family_alone():
    table = pl.DataFrame({"type": ["Casual Shoes"] * 3, "colour": ["Blue"] * 3})
    captions = ["navy blue sneakers", "blue casual shoes", "a shower curtain, mainly grey"]
    assert fashion.naming(captions, table) == {
        "type": pytest.approx(1 / 3),
        "type_synonyms": pytest.approx(2 / 3),
        "colour": pytest.approx(1 / 3),
        "colour_synonyms": pytest.approx(2 / 3),
    }


def test_chance_is_the_mean_over_all_orders():
    types, colours = ["Caps", "Caps", "Belts", "Watches"], ["Red", "Blue", "Red", "Maroon"]
    table = pl.DataFrame({"type": types, "colour": colours})
    captions = ["red cap", "a black belt", "red watch", "nothing"]
    rng = np.random.default_rng(0)
    drawn = [fashion.naming([captions[i] for i in rng.permutation(4)], table) for _ in range(4_000)]
    expected = fashion.chance(captions, table)
    for key, value in expected.items():
        assert np.mean([scores[key] for scores in drawn]) == pytest.approx(value, abs=0.02), key


def test_the_split_is_by_a_hash_of_the_product_id(tmp_path):
    (tmp_path / "images").mkdir()
    rows = [f'{i},Acme cap {i},"Accessories - Headwear - Caps - Red - Casual"' for i in range(20)]
    for i in range(20):
        Image.new("RGB", (6, 8), (i, 0, 0)).save(tmp_path / "images" / f"{i}.jpg")
    found = []
    for order in (rows, rows[::-1]):
        (tmp_path / "products.csv").write_text("product_id,title,attributes\n" + "\n".join(order))
        photos = fashion.read_photos(str(tmp_path))
        assert {name: part.stop - part.start for name, part in photos.split.items()} == {
            "train": 16,
            "valid": 2,
            "test": 2,
        }
        assert photos.pictures([0])[0].shape == (8, 6, 3)
        found.append(photos.table["product_id"].to_list())
    assert found[0] == found[1]
