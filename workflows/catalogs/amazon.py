"""Importer of Amazon review sequences, the next-item benchmarks of the literature."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from storage import files
from storage.errors import UserError
from workflows.catalogs import canonical


def import_amazon(source: str, directory: str) -> dict[str, Any]:
    """Writes a folder of sequences as a canonical catalogue and returns a summary.

    Reads `items.tsv` (item, a tab, a phrase) and `sequences.txt` (per line a user and their items in time order). The
    n-th event of a user gets the timestamp n seconds after 1970. This orders the events of one user but not of
    different users, so only splits by position (leave the last out) make sense. No label: every row is a positive.

    Raises:
        UserError: a file is missing or malformed, or the directory is not empty; nothing is written.
    """
    canonical.require_empty(directory)
    items, interactions = _read_items(source), _read_sequences(source)
    return canonical.write_catalog(
        directory,
        name="amazon",
        source="Amazon product reviews, 2014 edition, 5-core",
        items=items,
        interactions=interactions,
        timestamps="order",
        notes=["timestamps are positions in a user's sequence, in seconds: split by position, not by time"],
    )


def _read_items(source: str) -> pa.Table:
    rows = [line.split("\t") for line in _lines(source, "items.tsv")]
    wrong = next((number for number, row in enumerate(rows, 1) if len(row) != 2), None)
    if wrong:
        raise UserError(f"Line {wrong} of items.tsv must be an item, one tab and its text.")
    ids, titles = [item for item, _ in rows], [text or None for _, text in rows]
    return canonical.items_table(ids, titles, [[]] * len(rows), [None] * len(rows))


def _read_sequences(source: str) -> pa.Table:
    rows = [line.split() for line in _lines(source, "sequences.txt")]
    wrong = next((number for number, row in enumerate(rows, 1) if len(row) < 2), None)
    if wrong:
        raise UserError(f"Line {wrong} of sequences.txt must be a user and at least one item, separated by spaces.")
    events = [(user, item, second) for user, *items in rows for second, item in enumerate(items, 1)]
    user_ids, item_ids, seconds = zip(*events, strict=True)
    return canonical.log_table(pa.array(user_ids), pa.array(item_ids), pa.array(seconds))


def _lines(source: str, name: str) -> list[str]:
    content = files.read_bytes(canonical.require_file(source, name))
    try:
        lines = [line for line in content.decode().split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{name} must be UTF-8 text: {error}.") from error
    if not lines:
        raise UserError(f"{name} in {source} is empty: point to a folder with the whole data set.")
    return lines
