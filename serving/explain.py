"""Why an item is in an answer: the nearest item of the history, and what both share."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from models.semantic_ids.suffixes import NO_SUFFIX, sid_string
from serving.catalogue import Catalogue
from serving.query import Why

WORD = re.compile(r"[^\W\d_]{3,}")
COMMON = frozenset(
    ["and", "are", "for", "from", "has", "its", "not", "of", "on", "that", "the", "their", "this", "to", "with"]
)
SHOWN = 8  # words, at most


def explained(catalogue: Catalogue, vectors: torch.Tensor, rows: torch.Tensor, liked: torch.Tensor) -> list[Why]:
    """Says of items what they share with the nearest item of a history.

    Args:
        catalogue: of the items.
        vectors: of all items, unit length, float32 [N, D].
        rows: of the items, int64 [n].
        liked: rows of the history, int64 [h].
    """
    if not len(liked):
        return [Why() for _ in rows.tolist()]
    cosine, at = (vectors[rows] @ vectors[liked].T).max(1)
    return [
        _shared(catalogue, row, near, similarity)
        for row, near, similarity in zip(rows.tolist(), liked[at].tolist(), cosine.tolist(), strict=True)
    ]


def _shared(catalogue: Catalogue, row: int, near: int, similarity: float) -> Why:
    one, other = catalogue.described([row, near])
    mine, theirs = catalogue.codes[row, :-1].tolist(), catalogue.codes[near, :-1].tolist()  # without the suffix
    levels = next((level for level, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1]), len(mine))
    words = _words(other["caption"])
    return Why(
        nearest=other["item_id"],
        similarity=similarity,
        shared_sid=sid_string([code for code in mine[:levels] if code != NO_SUFFIX]),
        words=[word for word in _words(one["caption"]) if word in words][:SHOWN],
        interests=[name for name in one["interests"] or () if name in (other["interests"] or ())][:SHOWN],
    )


def _words(text: str | None) -> Sequence[str]:
    """Returns the words of a text that say something, each once."""
    found = WORD.findall((text or "").lower())
    return list(dict.fromkeys(word for word in found if word not in COMMON))
