"""What a captioner is to say of an item: sentences of its title and attributes, with the words that a picture shows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from models.qformer.words import split_words

COLOURS = ("colour", "color", "base_colour", "base_color", "main_colour", "main_color")  # keys of attributes
THINGS = ("article_type", "product_type", "item_type", "type", "sub_category", "subcategory", "category", "kind")
BRANDS = ("brand", "manufacturer", "maker", "designer", "vendor", "seller")
MOST_WORDS = 10  # of a sentence
Attributes = Sequence[tuple[str, str]]


def text_of(title: str | None, attributes: Attributes) -> str:
    """Returns the words of all that is said of an item, but for its brand."""
    plain = _plain(attributes)
    said = [_title(title, plain), *(value for key, value in plain.items() if key not in BRANDS)]
    return " ".join(word for text in said for word in split_words(text))


def sentences(title: str | None, attributes: Attributes, seen: Collection[str]) -> list[str]:
    """Returns the sentences for an item, the one that captions should look like first; none if nothing is seen.

    >>> sentences("Acme Speed Cat printed shoe", [("Colour", "Red"), ("type", "Shoes"), ("brand", "Acme")],
    ...           {"red", "shoe", "shoes", "printed"})
    ['Red shoes, printed, shoe.', 'Printed shoe.', 'Shoes in red.']
    """
    values = _plain(attributes)
    colour, thing = (
        _kept(next((values[key] for key in keys if key in values), ""), seen) for keys in (COLOURS, THINGS)
    )
    short, main = _kept(_title(title, values), seen), [*colour, *thing]
    rest = [value for key, value in values.items() if key not in (*COLOURS, *THINGS, *BRANDS)]
    others = [word for word in _kept(" ".join([*short, *rest]), seen) if word not in main][: MOST_WORDS - len(main)]
    lead = " ".join(main) or " ".join(others)
    wordings = [
        ", ".join([lead, *others]) if main else lead,
        " ".join(short),
        f"{' '.join(thing)} in {' '.join(colour)}" if colour and thing else "",
    ]
    return list(dict.fromkeys(f"{text[0].upper()}{text[1:]}." for text in wordings if text))


def _plain(attributes: Attributes) -> dict[str, str]:
    """Returns attributes with keys in lower case and underscores: `Base Colour` is `base_colour`."""
    return {"_".join(key.lower().replace("-", " ").split()): value or "" for key, value in attributes}


def _title(title: str | None, values: Mapping[str, str]) -> str:
    """Returns a title without the words of the brand, but for those that another attribute says as well."""
    brand, said = (
        {word for key, value in values.items() if (key in BRANDS) == named for word in split_words(value)}
        for named in (True, False)
    )
    return " ".join(word for word in split_words(title or "") if word not in brand - said)


def _kept(text: str, seen: Collection[str]) -> list[str]:
    return [word for word in dict.fromkeys(split_words(text)) if word in seen][:MOST_WORDS]
