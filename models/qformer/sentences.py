"""What a captioner is to say of an item: sentences of its title and attributes, with the words that a picture shows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from models.qformer.words import split_words

COLOURS = ("colour", "color", "base_colour", "base_color", "main_colour", "main_color")  # keys of attributes
THINGS = ("article_type", "product_type", "item_type", "type", "sub_category", "subcategory", "category", "kind")
BRANDS = ("brand", "manufacturer", "maker", "designer", "vendor", "seller")
Attributes = Sequence[tuple[str, str]]


def text_of(title: str | None, attributes: Attributes) -> str:
    """Returns all that is said of an item, but for its brand."""
    brand = _words(value for key, value in attributes if key.lower() in BRANDS)
    said = [title or "", *(value for key, value in attributes if key.lower() not in BRANDS)]
    return " ".join(word for text in said for word in split_words(text) if word not in brand)


def sentences(title: str | None, attributes: Attributes, seen: Collection[str]) -> list[str]:
    """Returns the sentences for an item, the one that captions should look like first; none if nothing is seen.

    >>> sentences("Acme Speed Cat printed shoe", [("colour", "Red"), ("type", "Shoes"), ("brand", "Acme")],
    ...           {"red", "shoe", "shoes", "printed"})
    ['Red shoes, printed, shoe.', 'Printed shoe.', 'Shoes in red.']
    """
    values: Mapping[str, str] = {key.lower(): value for key, value in attributes}
    told = set(split_words(text_of(title, attributes))) & set(seen)
    colour = _kept(next((values[key] for key in COLOURS if key in values), ""), told)
    thing = _kept(next((values[key] for key in THINGS if key in values), ""), told)
    short = _kept(title or "", told)
    rest = [value for key, value in values.items() if key not in (*COLOURS, *THINGS, *BRANDS)]
    others = [word for text in (" ".join(short), *rest) for word in _kept(text, told - {*colour, *thing})]
    main = [*colour, *thing]
    wordings = [
        ", ".join([" ".join(main), *dict.fromkeys(others)]) if main else " ".join(short),
        " ".join(short),
        f"{' '.join(thing)} in {' '.join(colour)}" if colour and thing else "",
    ]
    return list(dict.fromkeys(f"{text[0].upper()}{text[1:]}." for text in wordings if text))


def _kept(text: str, told: Collection[str]) -> list[str]:
    return [word for word in dict.fromkeys(split_words(text)) if word in told]


def _words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in split_words(text)}
