"""Reading JSON Lines, and values of JSON as text."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import polars as pl

from storage.encodings import LONGEST, SAMPLE_BYTES
from storage.errors import UserError
from storage.text_tables import Block, as_number, numeric


def read_json_lines(
    contents: Iterable[tuple[bytes, bool]], uri: str, numbers: dict[str, bool] | None = None
) -> Iterator[Block]:
    """Reads JSON Lines in UTF-8 block by block, see `read_csv`.

    What is of one type here and of another there becomes text, lists and objects as JSON.

    Raises:
        UserError: not one line is a JSON object.
    """
    held, line, found, start = b"", 0, 0, b""
    for content, last in contents:
        start = start or content[:SAMPLE_BYTES].lstrip()[:1]
        content = held + content
        end = len(content) if last else content.rfind(b"\n") + 1 or (len(content) if len(content) > LONGEST else 0)
        block, held = content[:end], content[end:]
        rows, bad = _json_rows(block, line)
        if bad and start == b"[":
            raise UserError(
                f"{uri} is one JSON array: write one object for each row, on a line of its own, without brackets."
            )
        found, line = found + rows.height, line + block.count(b"\n")
        if last and not found:
            raise UserError(
                f"{uri} has no line that is a JSON object: write one object for each row, on a line of its own."
            )
        if rows.height or bad:
            yield Block(rows, bad, {})


def _json_rows(content: bytes, before: int) -> tuple[pl.DataFrame, list[str]]:
    """Returns the rows of whole lines, and what is wrong with others; so many lines are before them."""
    if not content.strip():
        return pl.DataFrame(), []
    with contextlib.suppress(pl.exceptions.PolarsError):
        return pl.read_ndjson(content, infer_schema_length=None), []
    rows: list[dict[str, Any]] = []
    bad = []
    for number, line in enumerate(content.split(b"\n"), before + 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=all_values, parse_constant=lambda name: None)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad.append(f"line {number} is no JSON object")
    names = dict.fromkeys(name for row in rows for name in row)
    table = pl.DataFrame([pl.Series(name, [as_text(row.get(name)) for row in rows], pl.String) for name in names])
    return table.with_columns(as_number(table[name], ",", thousands=False) for name in numeric(table, ",")), bad


def all_values(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object of JSON; a key that stands there several times gets the list of its values."""
    values: dict[str, list[Any]] = {}
    for key, value in pairs:
        values.setdefault(key, []).append(value)
    return {key: found[0] if len(found) == 1 else found for key, found in values.items()}


def as_text(value: Any) -> str | None:
    """Returns a value of JSON as text, what is no text as JSON; half a surrogate pair, which no file holds, is `?`."""
    text = value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text and text.encode(errors="replace").decode()
