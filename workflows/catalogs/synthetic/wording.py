"""Titles and descriptions of the embedded catalogue; those of every second item do not mention its looks."""

from __future__ import annotations

import numpy as np

NOUNS = {
    "mug": ("mug", "cup"),
    "shirt": ("shirt", "tee"),
    "shoe": ("shoe", "sneaker"),
    "lamp": ("lamp", "table lamp"),
    "chair": ("chair", "side chair"),
    "bag": ("bag", "handbag"),
    "vase": ("vase", "flower vase"),
    "umbrella": ("umbrella", "brolly"),
}
PATTERN_WORDS = {"plain": "plain", "stripes": "striped", "dots": "dotted", "checks": "checked", "zigzag": "zigzag"}
BRANDS = ("Alder", "Brinmore", "Castell", "Dovetail", "Elmsworth", "Farrow", "Gantry", "Hollis", "Inverley", "Juniper")
LINES = ("Anna", "Bergen", "Coast", "Delta", "Everyday", "Fjord", "Garden", "Harbour", "Island", "Jubilee", "Kindred")
PHRASES = (
    "Made to last and easy to care for.",
    "A gift that finds its place in any home.",
    "Ships within two days in recycled packaging.",
    "Designed in a small studio.",
    "Tested for daily use.",
    "Part of the new season.",
    "Loved by our customers since the first edition.",
    "Light, practical and fairly priced.",
)


def write_title(look: dict[str, str], *, descriptive: bool, brand: str, rng: np.random.Generator) -> str:
    """Returns a title such as "Red striped glossy mug by Alder", or "Alder Fjord mug" if not `descriptive`."""
    noun = str(rng.choice(NOUNS[look["category"]]))
    line = str(rng.choice(LINES))
    if not descriptive:
        return f"{brand} {line} {noun}"
    words = f"{look['colour']} {PATTERN_WORDS[look['pattern']]} {look['material']} {noun}"
    return f"{words.capitalize()} by {brand}"


def write_description(look: dict[str, str], *, descriptive: bool, rng: np.random.Generator) -> str:
    """Returns two generic phrases, after a sentence on the looks if `descriptive`."""
    first, second = rng.choice(PHRASES, 2, replace=False)
    if not descriptive:
        return f"{first} {second}"
    noun = NOUNS[look["category"]][0]
    return f"A {look['material']} {noun} in {look['colour']}, {PATTERN_WORDS[look['pattern']]}. {first} {second}"
