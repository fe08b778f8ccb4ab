"""Reading CSV and JSON Lines as people export them: separators, encodings, and lines that are no rows."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.csv

from storage.errors import UserError

SEPARATORS = (",", ";", "\t", "|")
SAMPLE_BYTES = 1 << 16  # of a file, in which its header ends
DAMAGED = "\ufffd".encode()
LINES_OF_A_FIELD = 5  # other than a description's
BLOCK_BYTES = 1 << 26  # the longest row
# How data frames, databases and spreadsheets write no value, in lower case.
MISSING = ("nan", "null", "none", "<na>", "nat", "\\n", "n/a", "#n/a")
# Columns that are text whatever their values look like: a title 007 is no number.
TEXT = ("item_id", "user_id", "title", "description", "media", "attributes", "timestamp")
THOUSANDS = r"^[+-]?[1-9]\d{0,2}(\.\d{3})+(,\d+)?$"  # with a decimal comma


def said(text: pl.Expr) -> pl.Expr:
    """Returns texts without blanks around them, null where they stand for no value."""
    text = text.str.strip_chars()
    return pl.when(~text.str.to_lowercase().is_in([*MISSING, ""])).then(text)


def as_utf8(content: bytes) -> tuple[bytes, str | None]:
    """Returns a text file in UTF-8 without a byte order mark, and what was guessed of its encoding, as a predicate.

    What has no mark and is not UTF-8 is UTF-16 if it is full of zero bytes; it is damaged UTF-8 if it has more
    characters of several bytes than places that are none; and otherwise taken for Windows-1252, which extends Latin-1.
    """
    marked = content.startswith(codecs.BOM_UTF8)
    content = content.removeprefix(codecs.BOM_UTF8)
    start = content[:SAMPLE_BYTES]
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace").encode(), None
    if start.count(0) > len(start) / 4:
        little = start[1::2].count(0) > start[::2].count(0)
        return content.decode("utf-16-le" if little else "utf-16-be", errors="replace").encode(), None
    with contextlib.suppress(UnicodeDecodeError):
        decoder = codecs.getincrementaldecoder("utf-8")()
        for at in range(0, len(content), SAMPLE_BYTES):  # a copy of all as text would be as large as the file
            decoder.decode(content[at : at + SAMPLE_BYTES])
        decoder.decode(b"", final=True)
        return content, None
    mended = content.decode(errors="replace").encode()
    damages = mended.count(DAMAGED) - content.count(DAMAGED)
    characters = len(mended.translate(None, bytes(range(0xC0))))  # of several bytes, DAMAGED among them
    if marked or characters > 2 * damages:
        return mended, f"is no UTF-8 in {damages} places, the first on line {_first_damage(content)}, read as \ufffd"
    with contextlib.suppress(UnicodeDecodeError):
        return content.decode("cp1252").encode(), "is not UTF-8 and was read as Windows-1252"
    # Five bytes mean nothing in Windows-1252.
    return content.decode("latin-1").encode(), "is not UTF-8 and was read as Latin-1"


def _first_damage(content: bytes) -> int | None:
    """Returns the line with the first byte that is no UTF-8."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return content.count(b"\n", 0, error.start) + 1
    return None


def header(content: bytes, uri: str) -> tuple[str, list[str], int]:
    """Finds the header of a CSV file: by the right separator it has most of the names that are known, or most names.

    Returns:
        The separator, the names of the columns, and the number of lines up to the end of the header.

    Raises:
        UserError: the file is empty.
    """
    sample = content[:SAMPLE_BYTES].decode(errors="ignore")
    found = []
    for separator in SEPARATORS:
        reader = csv.reader(io.StringIO(sample, newline=""), delimiter=separator)
        try:
            rows = ([name.strip() for name in row] for row in reader)
            names = next((row for row in rows if any(row) and not re.fullmatch("sep=.?", row[0])), [])
        except csv.Error:  # a field of more than 128 KiB
            names = []
        found.append((separator, names, reader.line_num))
    if not any(names for _, names, _ in found):
        raise UserError(f"{uri} is empty: its first line must name the columns.")
    return max(found, key=lambda one: (len({*TEXT, "label"}.intersection(one[1])), len(one[1])))


def read_csv(content: bytes, uri: str) -> tuple[pl.DataFrame, list[str]]:
    """Reads a CSV file in UTF-8.

    Fields too many are left out where they are empty, fields too few where their columns have no name. Lines without a
    value are none. Columns that are no `TEXT` and hold numbers (with a decimal comma, if the separator is another) or
    booleans become floats.

    Returns:
        The rows, and of each line that is no row what is wrong with it.

    Raises:
        UserError: the file is empty, a name stands twice in its header, or a quote is never closed.
    """
    separator, names, skip = header(content, uri)
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise UserError(f"{uri} has two columns {twice[0]!r}: rename or remove one.")
    content = _quotes_doubled(content if content.endswith((b"\n", b"\r")) else content + b"\n", separator)
    wide = [*names, *[""] * _surplus(content, separator, skip, len(names))]
    rows, bad = _rows(content, uri, separator, wide, skip, len(names))
    if any(rows[:, position].count() for position in range(len(names), len(wide))):
        rows, bad = _rows(content, uri, separator, names, skip, len(names))
    rows = rows[:, : len(names)]
    if (blank := rows.select(pl.all_horizontal(pl.all().is_null())).to_series()).any():
        rows = rows.filter(~blank)
    rows = rows.rename(dict(zip(rows.columns, _unique(names), strict=True)))
    return rows.with_columns(typed(rows[name], separator) for name in rows.columns if name not in TEXT), bad


def _quotes_doubled(content: bytes, separator: str) -> bytes:
    """Doubles the quotes of CSV where a sample has one behind a backslash that ends no field, as MySQL writes."""
    other = re.escape(separator.encode())
    escaped = rb'(?m)(?:^|%b)"(?:[^"\\]|\\[^"])*\\"[^"\r\n%b]' % (other, other)
    if b'\\"' not in content[:SAMPLE_BYTES] or not re.search(escaped, content[:SAMPLE_BYTES]):
        return content
    return content.replace(b"\\\\", b"\0\0").replace(b'\\"', b'""').replace(b"\0\0", b"\\")


def open_quotes(rows: pl.DataFrame) -> Iterator[str]:
    """Yields a sentence for each column with a field of so many lines that its quote may have taken in other rows."""
    for column in rows.select(pl.col(pl.String).exclude("description")):
        breaks = column.str.count_matches("\n").fill_null(0).to_numpy()
        if len(breaks) and breaks.max() > LINES_OF_A_FIELD:
            start = column[int(breaks.argmax())][:40].partition("\n")[0]
            lines = f"a {column.name} of {breaks.max() + 1} lines, which begins with {start!r}"
            yield f'has {lines}: does it lack a quote (")?'


def _surplus(content: bytes, separator: str, skip: int, width: int) -> int:
    """Returns how many empty fields the first row has beyond those of the header; mostly all rows have them."""
    sample = content[:SAMPLE_BYTES].decode(errors="ignore")
    reader = csv.reader(io.StringIO(sample, newline=""), delimiter=separator)
    with contextlib.suppress(csv.Error):  # a field of more than 128 KiB
        for row in reader:
            if row and reader.line_num > skip:
                return 0 if any(field.strip() for field in row[width:]) else len(row[width:])
    return 0


def _rows(
    content: bytes, uri: str, separator: str, names: list[str], skip: int, width: int
) -> tuple[pl.DataFrame, list[str]]:
    """Reads the rows under a header of `width` columns as text, in columns 0, 1, … for the names.

    Raises:
        UserError: a quote is never closed.
    """
    columns = [str(position) for position in range(len(names))]
    ragged: list[Any] = []

    def collect(row: Any) -> str:
        ragged.append(row)
        return "skip"

    try:
        reader = pyarrow.csv.open_csv(
            pa.BufferReader(content),
            # Rows are numbered in one thread only.
            pyarrow.csv.ReadOptions(
                use_threads=False, column_names=columns, skip_rows=skip, block_size=min(BLOCK_BYTES, len(content) + 1)
            ),
            pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=collect),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=True, null_values=[""]
            ),
        )
        nothing = pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
        rows = pl.concat([nothing, *(pl.DataFrame(batch) for batch in reader)])  # block by block: the file is held, too
    except pa.ArrowInvalid as error:
        raise UserError(_unclosed(content, uri, separator)) from error
    ends = [rows.item(-1, -1)] if rows.height else []
    ends += [_fields(row.text, separator)[-1] for row in ragged[-1:]]
    tail = content[-BLOCK_BYTES:].rstrip(b"\r\n")
    if any(end and "\n" in end.strip() and tail.endswith(end.strip().encode()) for end in ends):  # no quote after it
        raise UserError(_unclosed(content, uri, separator))
    return _mended(rows, ragged, content, separator, names, skip, width)


def _unique(names: list[str]) -> list[str]:
    """Gives columns without a name one each."""
    return [name or f"Unnamed: {position}" for position, name in enumerate(names)]


def _mended(
    rows: pl.DataFrame, ragged: list[Any], content: bytes, separator: str, names: list[str], skip: int, header: int
) -> tuple[pl.DataFrame, list[str]]:
    """Puts rows that lack nothing, or have nothing too much, back in their place; says of others where they stand."""
    width, mended, bad = rows.width, {}, []
    for row, line in zip(ragged, _lines(content, (row.text.encode() for row in ragged)), strict=True):
        fields = _fields(row.text, separator)
        number = row.number - skip - 1
        if not any(field.strip() for field in fields[width:]) and not any(names[len(fields) :]):
            mended[number] = [field or None for field in [*fields, *names[len(fields) :]][:width]]
            continue
        found = f"another number of fields ({row.actual_columns}) than the header ({header})"
        bad += [f"line {line + n} has {found}" for n in range(len(re.split("\r\n?|\n", row.text)))]
    if mended:
        kept = pl.Series(range(rows.height + len(ragged)), dtype=pl.Int64)
        kept = kept.filter(~kept.is_in([row.number - skip - 1 for row in ragged]))
        back = pl.DataFrame(list(mended.values()), schema=rows.schema, orient="row")
        both = [rows.with_columns(kept.alias("at")), back.with_columns(pl.Series("at", list(mended), pl.Int64))]
        rows = pl.concat(both).sort("at").drop("at")
    return rows, bad


def _fields(text: str, separator: str) -> list[str]:
    return next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [""])


def _lines(content: bytes, texts: Iterable[bytes]) -> Iterator[int]:
    """Yields the number, from 1, of the line at which each of some rows begins, given in their order."""
    newline = b"\n" if b"\n" in content else b"\r"
    position, line = 0, 1
    for text in texts:
        row = newline + text
        at = content.find(row, position)
        while at >= 0 and content[at + len(row)] not in b"\r\n":  # the start of a longer line
            at = content.find(row, at + 1)
        if at >= 0:
            line += content.count(newline, position, at + 1)
            position = at + 1
        yield line
        if at >= 0:  # behind the row, whose text may stand there twice
            line += text.count(newline)
            position += len(text)


def _unclosed(content: bytes, uri: str, separator: str) -> str:
    """Says on which line the quote stands that swallows the rest of a file."""
    limit = csv.field_size_limit(len(content) + 1)
    reader = csv.reader(io.StringIO(content.decode(), newline=""), delimiter=separator)
    line, ends = 1, 0
    for _ in reader:
        line, ends = ends + 1, reader.line_num
    csv.field_size_limit(limit)
    return f'{uri} has a quote (") on line {line} that is never closed: close it, or write it twice.'


def typed(column: pl.Series, separator: str) -> pl.Series:
    """Returns floats for a column that holds nothing but numbers and booleans, and the column as it is otherwise.

    Labels may hold other text, which becomes null.
    """
    lower = column.str.strip_chars().str.to_lowercase()
    text = lower.set(lower.is_in(MISSING), None).replace({"true": "1", "false": "0"})
    numbers = (text if separator == "," else _decimal_points(text)).cast(pl.Float64, strict=False)
    readable = column.name == "label" or numbers.count() == text.count()
    return numbers if readable and numbers.count() else column


def _decimal_points(text: pl.Series) -> pl.Series:
    """Writes decimal commas as points; where a column has any, and thousands at all its points, those points go."""
    pointed = text.filter(text.str.contains(".", literal=True))
    if len(pointed) and text.str.contains(",", literal=True).any() and pointed.str.contains(THOUSANDS).all():
        text = text.str.replace_all(".", "", literal=True)
    return text.str.replace(",", ".", literal=True)


def read_json_lines(content: bytes, uri: str) -> tuple[pl.DataFrame, list[str]]:
    """Reads JSON Lines in UTF-8; what is of one type here and of another there becomes text, lists and objects as JSON.

    Returns:
        The rows, and of each line that is no row what is wrong with it.

    Raises:
        UserError: not one line is a JSON object.
    """
    try:
        return pl.read_ndjson(content, infer_schema_length=None), []
    except pl.exceptions.PolarsError:
        pass
    rows: list[dict[str, Any]] = []
    bad = []
    for number, line in enumerate(content.split(b"\n"), 1):
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
    if content[:SAMPLE_BYTES].lstrip().startswith(b"["):
        raise UserError(
            f"{uri} is one JSON array: write one object for each row, on a line of its own, without brackets."
        )
    if not rows:
        raise UserError(
            f"{uri} has no line that is a JSON object: write one object for each row, on a line of its own."
        )
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [pl.Series(name, [as_text(row.get(name)) for row in rows], pl.String) for name in names]
    return pl.DataFrame([column if column.name in TEXT else typed(column, ",") for column in columns]), bad


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
