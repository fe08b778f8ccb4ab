"""The fashion photos as a benchmark of captions: their split, and what a caption names."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import yaml
from PIL import Image

from storage.hashing import hash_order

WORDS = Path(__file__).parent / "fashion_words.yaml"
SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}  # in the order of a hash of the product id
GENDER = re.compile(r"\b(men|women|boys?|girls?|kids?|unisex)\b.*", re.IGNORECASE)
PLURAL = re.compile(r"(?<=ch|sh|ss)es$|(?<=[a-rt-z]{2})s$")
KINDS = {"type": "types", "colour": "colours"}


class Photos(NamedTuple):
    """Products in the order of a hash of their ids.

    Attributes:
        table: product_id, title, type, colour, usage: strings.
        files: their photos.
        split: rows of `train`, `valid` and `test`.
    """

    table: pl.DataFrame
    files: list[Path]
    split: dict[str, slice]

    def pictures(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Decodes photos to uint8 [H, W, 3]."""
        return [np.asarray(Image.open(self.files[row]).convert("RGB")) for row in rows]


def read_photos(folder: str) -> Photos:
    """Reads `products.csv` and the names of the photos beside it."""
    table = pl.read_csv(Path(folder) / "products.csv", infer_schema=False)
    names = ["master", "sub", "type", "colour", "usage"]
    attributes = pl.col("attributes").str.split(" - ").list.to_struct(fields=names)
    table = table.with_columns(attributes).unnest("attributes").drop("master", "sub")
    table = table[hash_order(table["product_id"].to_arrow())]
    ends = [0, *np.cumsum([round(share * len(table)) for share in SHARES.values()]).tolist()]
    split = {name: slice(*ends[number : number + 2]) for number, name in enumerate(SHARES)}
    return Photos(table, [Path(folder) / "images" / f"{name}.jpg" for name in table["product_id"]], split)


def said_of(row: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Returns what a captioner may learn of a product: its title from the gender on, since the brand comes before it,
    and its colour, type and usage in the phrases of the lists."""
    title = GENDER.search(row["title"])
    attributes = {
        "colour": lexicon("colour").phrase(row["colour"]),
        "article_type": lexicon("type").phrase(row["type"]),
        "usage": row["usage"].lower(),
    }
    return title.group() if title else "", attributes


def write_catalog(photos: Photos, rows: range, folder: Path) -> None:
    """Writes photos as the items of a catalogue whose media lie where they are."""
    lines = []
    for row in rows:
        title, attributes = said_of(photos.table.row(row, named=True))
        media = [{"uri": str(photos.files[row].resolve()), "kind": "image"}]
        item = {"item_id": photos.table["product_id"][row], "title": title or None, "attributes": attributes}
        lines.append(json.dumps({**item, "media": media}))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


class Lexicon:
    """Phrases of one kind, `type` or `colour`, and what they say; see `fashion_words.yaml`.

    Attributes:
        names: of the types or colours.
        families: number of each one's family.
    """

    def __init__(self, kind: str) -> None:
        self.names: list[str] = []
        self.families: list[int] = []
        self._says: dict[str, tuple[int, int]] = {}  # phrase: number of its type, -1 for a family's word; family
        self._first: dict[str, str] = {}
        families: list[dict[str, list[str]]] = yaml.safe_load(WORDS.read_text())[KINDS[kind]]
        for family, entry in enumerate(families):
            for name, phrases in entry.items():
                number = -1 if name == "also" else len(self.names)
                if number >= 0:
                    self.names.append(name)
                    self.families.append(family)
                    self._first[name] = phrases[0]
                for phrase in phrases:
                    known = self._says.setdefault(plain(phrase), (number, family))
                    if known[1] != family or -1 != number != known[0]:
                        raise ValueError(f"{phrase!r} says two things")
        longest_first = sorted(self._says, key=len, reverse=True)
        self._pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, longest_first)) + r")\b")

    def phrase(self, name: str) -> str:
        """Returns how captions say a type or colour."""
        return self._first[name]

    def number(self, name: str) -> int:
        """Returns the number of a type or colour."""
        return self.names.index(name)

    def said(self, caption: str) -> tuple[int, int]:
        """Returns what a caption names first: the type or colour, or -1, and its family, or -1."""
        found = self._pattern.search(plain(caption))
        return self._says[found.group()] if found else (-1, -1)


@functools.cache
def lexicon(kind: str) -> Lexicon:
    """Returns the phrases of a kind."""
    return Lexicon(kind)


def plain(text: str) -> str:
    """Returns lower-case words without marks and without the s of a plural.

    >>> plain("T-Shirts, watches & dresses")
    't shirt watch dress'
    """
    return " ".join(PLURAL.sub("", word) for word in re.findall(r"[a-z]+", text.lower()))


def naming(captions: Sequence[str], table: pl.DataFrame) -> dict[str, float]:
    """Returns the shares of captions that name the type and the colour, exactly and by a synonym."""
    return {key: float((said == truth).mean()) for key, said, truth in _named(captions, table)}


def chance(captions: Sequence[str], table: pl.DataFrame) -> dict[str, float]:
    """Returns what `naming` is, on average, of captions beside random pictures: the sum of p(said) p(true)."""
    return {key: _agreement(said, truth) for key, said, truth in _named(captions, table)}


def _named(captions: Sequence[str], table: pl.DataFrame) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields the name of each score, what captions say, and what is true."""
    for kind in KINDS:
        words = lexicon(kind)
        truth = np.array([words.number(name) for name in table[kind]])
        said = np.array([words.said(caption) for caption in captions])
        yield kind, said[:, 0], truth
        yield f"{kind}_synonyms", said[:, 1], np.array(words.families)[truth]


def _agreement(said: np.ndarray, truth: np.ndarray) -> float:
    size = int(max(said.max(), truth.max())) + 1
    shares: list[Any] = [np.bincount(x[x >= 0], minlength=size) / len(x) for x in (said, truth)]
    return float(shares[0] @ shares[1])
