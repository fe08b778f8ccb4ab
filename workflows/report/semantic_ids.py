"""Quality of the semantic IDs beside that of naive ones, which are residual k-means on the text vector alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workflows.engine.text import count, decimal, percent
from workflows.report.contents import Figure, Table, trend

Show = Callable[[Any], str]
ATTRIBUTES = 8  # maximum number of attributes whose purity is shown
NAME_LENGTH = 40
BY_LEVEL: list[tuple[str, tuple[str, ...], Show]] = [
    ("codewords used", ("usage",), percent),
    ("dead codes", ("dead_codes",), count),
    ("perplexity", ("perplexity",), lambda value: decimal(value, 1)),
    ("prefix entropy, bits", ("prefix_entropy",), lambda value: decimal(value, 2)),
    ("new items with a known prefix", ("known_prefixes",), percent),
    ("reconstruction cosine", ("reconstruction_cosine",), lambda value: decimal(value, 3)),
    ("variance lost", ("reconstruction_mse",), percent),
]
BY_WHOLE_ID: list[tuple[str, tuple[str, ...], Show]] = [
    ("items that share all codes with another", ("collision_share",), percent),
    ("the same after deduplication", ("collision_share_after",), percent),
    ("largest group that shares all codes", ("largest_collision",), count),
    ("neighbour overlap@10, by shared prefix", ("neighbour_overlap", "prefix"), percent),
    ("neighbour overlap@10, by decoded ID", ("neighbour_overlap", "decoded"), percent),
]
DRIFT: list[tuple[str, str, str, Show]] = [  # name, key, key of the control, format
    ("reconstruction cosine", "reconstruction_cosine", "old", lambda value: decimal(value, 3)),
    ("variance lost", "reconstruction_mse", "old", percent),
    ("of it systematic", "systematic_error", "old", percent),
    ("codewords used", "usage", "old", percent),
    ("divergence of the codes, bits", "divergence", "resampled", lambda value: decimal(value, 3)),
]


@dataclass(frozen=True)
class Row:
    """A metric; a cell has its value and that of the naive IDs, which is empty if they were not made."""

    name: str
    cells: list[tuple[str, str]]


def by_level(fit: dict[str, Any], sizes: list[int]) -> list[Row]:
    """Returns the metrics of each level, or of the IDs up to it.

    Args:
        fit: `metrics/quantize.json`; any key may be missing, also for the functions below.
        sizes: sizes of the codebooks.
    """
    rows = _rows(fit, BY_LEVEL)
    return [Row("codebook size", [(count(size), "") for size in sizes]), *rows] if rows and sizes else rows


def by_whole_id(fit: dict[str, Any]) -> list[Row]:
    """Returns the metrics of whole IDs."""
    return _rows(fit, BY_WHOLE_ID)


def purity(fit: dict[str, Any]) -> list[Row]:
    """Returns, for some attributes, the share of items with their first codes' commonest value, and that by chance."""
    attributes = list((fit.get("scorecard") or {}).get("category_purity") or {})[:ATTRIBUTES]
    return _rows(
        fit,
        [
            (name.format(attribute[:NAME_LENGTH]), ("category_purity", attribute, key), percent)
            for attribute in attributes
            for key, name in (("purity", "{}"), ("shuffled", "{}, shuffled"), ("covered", "{}, items that count"))
        ],
    )


def decodability(fit: dict[str, Any]) -> Table | None:
    """Returns, for some attributes, how often a linear model names their values from the codes and from embeddings."""
    rows: list[list[str]] = []
    for name, card in list(((fit.get("scorecard") or {}).get("decodability") or {}).items())[:ATTRIBUTES]:
        shares = [*_values(card, ("codes",)), *_values(card, ("embedding",)), *_values(card, ("commonest",))]
        rows.append([name[:NAME_LENGTH], *map(percent, shares)])
    levels = [
        f"{number} codes" if number > 1 else "first code" for number in range(1, max(map(len, rows), default=0) - 2)
    ]
    return Table(["attribute", *levels, "embedding", "commonest value"], rows) if rows else None


def drift(fit: dict[str, Any]) -> Table | None:
    """Returns how a frozen quantizer of an earlier run fits the items that are new to it."""
    report, rows = fit.get("drift"), []
    for name, key, control, show in DRIFT:
        new, old = (_values(report, (key, side)) for side in ("new", control))
        for level, (value, beside) in enumerate(itertools.zip_longest(new, old), start=1):
            rows.append([f"{name}, level {level}" if len(new) > 1 else name, show(value), show(beside)])
    return Table(["figure", "new items", "items of the fit"], rows) if rows else None


def training(fit: dict[str, Any]) -> list[Figure]:
    """Returns the training curves of the quantizer."""
    history = fit.get("history") or []
    titles = {
        "reconstruction": "Reconstruction: mean squared error per standardised dimension",
        "quantization": "Quantization loss per row",
        "alignment": "Alignment loss per row",
    }
    return [
        trend(title, history, "step", {key: key})
        for key, title in titles.items()
        if any(row.get(key) for row in history)  # a loss that the method does not have is always zero
    ]


def _rows(fit: dict[str, Any], figures: list[tuple[str, tuple[str, ...], Show]]) -> list[Row]:
    rows = []
    for name, path, show in figures:
        own, naive = (_values(fit.get(card), path) for card in ("scorecard", "naive"))
        pairs = itertools.zip_longest(own, naive)
        if own:
            rows.append(Row(name, [(show(value), show(beside) if naive else "") for value, beside in pairs]))
    return rows


def _values(card: Any, path: tuple[str, ...]) -> list[Any]:
    """Returns the values of a scorecard at a path of keys: one per level, a single one, or none."""
    for key in path:
        card = card.get(key) if isinstance(card, dict) else None
    return card if isinstance(card, list) else [] if card is None else [card]
