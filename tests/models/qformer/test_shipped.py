"""The weights that come with the package, on drawings that they have never seen."""

from __future__ import annotations

from pathlib import Path

from models.captioning.captioner import Context
from models.captioning.qformer import QFormerCaptioner
from models.embedding.qformer import QFormerImages, QFormerTexts
from models.qformer.weights import SHIPPED, folder_of
from tests.models.qformer.clothes import COLOURS, bag, shirt

MOST_BYTES = 24 << 20


def test_they_are_small_and_say_what_they_are() -> None:
    folder = Path(folder_of(SHIPPED))
    assert {file.name for file in folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert sum(file.stat().st_size for file in folder.iterdir()) <= MOST_BYTES


def test_they_name_clothes_and_colours() -> None:
    captioner = QFormerCaptioner()
    captioner.load()
    shirts = captioner.caption([shirt(colour) for colour in COLOURS], [Context()] * len(COLOURS))
    bags = captioner.caption([bag("red"), bag("black")], [Context()] * 2)
    assert all("t-shirt" in str(caption).lower() for caption in shirts), shirts
    assert all("bag" in str(caption).lower() for caption in bags), bags
    named = [colour in str(caption).lower() for colour, caption in zip(COLOURS, shirts, strict=True)]
    assert sum(named) >= len(COLOURS) - 1, shirts


def test_texts_find_their_pictures() -> None:
    pictures = [draw(colour) for draw in (shirt, bag) for colour in COLOURS]
    texts = [f"{colour} {thing}" for thing in ("t-shirt", "handbag") for colour in COLOURS]
    near = QFormerTexts().embed_texts(texts).vectors @ QFormerImages().embed_images(pictures).T
    found = near.argmax(1)
    assert (found // len(COLOURS) == [0] * len(COLOURS) + [1] * len(COLOURS)).all()
    assert (found == range(len(texts))).mean() >= 0.75
