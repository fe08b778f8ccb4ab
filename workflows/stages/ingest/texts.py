"""Ids and texts as data frames, spreadsheets and shops write them: marks for no value, markup, lists as text."""

from __future__ import annotations

import ast
import html
import json
import re
from collections.abc import Collection
from html.entities import html5
from typing import Any

import numpy as np
import polars as pl

from operators.log.partitions import rows_among
from storage.errors import UserError
from storage.hashing import hash_ids
from storage.json_lines import all_values, as_text
from storage.text_tables import said

NAMES = (
    "a|abbr|acronym|address|article|aside|audio|b|base|bdi|bdo|big|blockquote|body|br|button|canvas|caption|center|"
    "cite|code|col|colgroup|dd|del|details|dfn|dir|div|dl|dt|em|embed|fieldset|figcaption|figure|font|footer|form|"
    "frame|frameset|h[1-6]|head|header|hr|html|i|iframe|img|input|ins|kbd|label|legend|li|link|main|map|mark|meta|nav|"
    "noscript|object|ol|option|p|param|path|picture|pre|q|s|samp|section|select|small|source|span|strike|strong|sub|"
    "summary|sup|svg|table|tbody|td|textarea|tfoot|th|thead|time|title|tr|tt|u|ul|var|video|wbr"
)
INLINE = "a|abbr|b|big|em|font|i|mark|s|small|span|strike|strong|sub|sup|tt|u|wbr"  # they part no words
VALUE = r"""(?:"[^"]*"|'[^']*'|[^\s"'<>]+)"""
ATTRIBUTE = rf"[\w:.@-]+\s*=\s*{VALUE}|allowfullscreen|async|checked|controls|defer|disabled|hidden|nowrap|selected"
TAG = r"(?i)</?(?:{names})(?:\s+(?:" + ATTRIBUTE + r"))*\s*/?>"
REMOVED = (  # patterns of markup and what takes their place, in this order
    (r"(?is)<(?:script|style)\b[^>]*>.*?</(?:script|style)\s*>", " "),
    (r"(?is)<(?:script|style)\b[^>]*>.*$", " "),  # cut off before its end
    (r"(?s)<!--.*?-->", " "),
    (r"(?i)<!doctype[^>]*>|<\?xml[^>]*>|<!\[CDATA\[|\]\]>", " "),
    (TAG.format(names=INLINE), ""),
    (TAG.format(names=NAMES), " "),
)
ENTITY = re.compile(r"&(#\d{1,7};|#[xX][0-9a-fA-F]{1,6};|[a-zA-Z][a-zA-Z0-9]{1,30};)")
# Control characters, zero-width ones, soft hyphens and marks of direction; joiners spell words and draw emoji.
INVISIBLE = r"[[\p{Cc}\p{Cf}]&&[^\s\u{200C}\u{200D}]]"
WHOLE = r"^(-?\d+)\.0$"
EXCEL = r'^\s*="([^"]*)"\s*$'
LONGEST_LIST = 1 << 20  # characters of a list written as text


def ids(values: pl.Series, *, whole: bool | None = None) -> pl.Series:
    """Returns ids as text without blanks and `="…"` of a spreadsheet around them, null where there is none.

    Whole numbers that a data frame has turned into floats, because a value was missing, are whole numbers again; those
    that stand as text are if `whole` says so, or by default if all of them do.
    """
    if values.dtype.is_float() or values.dtype.is_decimal():
        number = values.cast(pl.Float64)
        integer = number.cast(pl.Int64, strict=False)
        text = pl.select(
            pl.when(integer.cast(pl.Float64) == number)
            .then(integer.cast(pl.String))
            .when(number.is_finite())
            .then(number.cast(pl.String))
        ).to_series()
    else:
        text = values.cast(pl.String, strict=False).str.replace(EXCEL, "$1")
        text = pl.select(said(pl.lit(text))).to_series()
        if are_whole(text) if whole is None else whole:
            text = text.str.replace(WHOLE, "$1")
    return text.alias(values.name)


def are_whole(values: pl.Series) -> bool:
    """Returns whether all ids are text that shows a whole number with `.0` behind it."""
    text = values.drop_nulls()
    return text.dtype == pl.String and len(text) > 0 and text.str.contains(WHOLE).all()


def like(values: pl.Series, known: np.ndarray) -> pl.Series:
    """Returns ids as known ones are written, which may differ in `.0` alone; null for others.

    Args:
        values: the ids.
        known: hashes of the known ids, ascending.
    """
    ids = values.drop_nulls().unique()
    found = pl.Series([None] * len(ids), dtype=pl.String)
    for form in (ids, ids.str.replace(WHOLE, "$1"), ids.str.replace(r"^(-?\d+)$", "$1.0")):
        fits = pl.Series(rows_among(known, hash_ids(form.to_list()))[1], dtype=pl.Boolean)
        found = pl.select(pl.coalesce(found, form.set(~fits, None))).to_series()
    return values.replace_strict(ids, found, default=None, return_dtype=pl.String)


def plain(values: pl.Series) -> pl.Series:
    """Returns texts without markup, entities and invisible characters, blanks collapsed; null where nothing is left."""
    if isinstance(values.dtype, pl.List):
        values = values.cast(pl.List(pl.String)).list.join(" ")
    texts = values.cast(pl.String)
    texts = _replaced(texts, texts.str.contains(r"^\s*\["), _joined)
    for _ in range(3):  # feeds escape twice, and what they wrap once more
        texts = _stripped(texts)
        texts = _replaced(texts, texts.str.contains("&", literal=True), _unescaped)
    texts = _stripped(texts).str.replace_all(INVISIBLE, "").str.replace_all(r"\s+", " ")
    return pl.select(said(pl.lit(texts)).alias(values.name)).to_series()


def nested(text: str) -> Any:
    """Parses a list or an object that was written as text, by JSON or as Python shows it; returns None for other text.

    NumPy shows its arrays of text without commas.
    """
    if not re.match(r"\s*[\[({]", text) or len(text) > LONGEST_LIST:
        return None
    try:
        return json.loads(text, object_pairs_hook=all_values)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(re.sub(r"(?<=['\"])\s+(?=['\"])", ", ", text.strip()))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _joined(text: str) -> str:
    found = nested(text)
    parts = isinstance(found, list) and all(isinstance(part, str) for part in found)
    return as_text(" ".join(found)) or "" if parts else text


def _unescaped(text: str) -> str:
    return ENTITY.sub(
        lambda found: html.unescape(found[0]) if found[1][0] == "#" or found[1] in html5 else found[0], text
    )


def _stripped(texts: pl.Series) -> pl.Series:
    marked = texts.str.contains("[<\\]]")
    if not marked.any():
        return texts
    found = texts.filter(marked)
    for pattern, blank in REMOVED:
        found = found.str.replace_all(pattern, blank)
    return texts.scatter(marked.arg_true(), found)


def _replaced(texts: pl.Series, where: pl.Series, function: Any) -> pl.Series:
    """Applies a function to the distinct texts of some rows."""
    found = texts.filter(where)
    if not len(found):
        return texts
    before = found.unique()
    return texts.scatter(where.arg_true(), found.replace_strict(before, [function(text) for text in before]))


def filled(rows: pl.DataFrame) -> pl.DataFrame:
    """Returns the columns of a table that have a value."""
    return rows.select(column.name for column in rows if column.null_count() < len(column))


def check_late(uri: str, columns: Collection[str]) -> None:
    """Refuses columns of a file that the first rows of its table lack, which decide how all of it is read.

    Raises:
        UserError: there are any.
    """
    if columns:
        raise UserError(
            f"{uri} has a column {min(columns)!r} of which the first rows of the table have no value: write it there, "
            "too, or leave it out."
        )
