"""Reading CSV as people export it: separators, quotes, numbers, and lines that are no rows."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.csv

from storage.encodings import LONGEST, SAMPLE_BYTES
from storage.errors import UserError

SEPARATORS = (",", ";", "\t", "|")
LINES_OF_A_FIELD = 5  # other than a description's
# How data frames, databases and spreadsheets write no value, in lower case.
MISSING = ("nan", "null", "none", "<na>", "nat", "\\n", "n/a", "#n/a")
# Columns that are text whatever their values look like: a title 007 is no number.
TEXT = ("item_id", "user_id", "title", "description", "media", "attributes", "timestamp")
THOUSANDS = r"^[+-]?[1-9]\d{0,2}(\.\d{3})+(,\d+)?$"  # with a decimal comma


def said(text: pl.Expr) -> pl.Expr:
    """Returns texts without blanks around them, null where they stand for no value."""
    text = text.str.strip_chars()
    return pl.when(~text.str.to_lowercase().is_in([*MISSING, ""])).then(text)


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


class Dialect(NamedTuple):
    """What the first block of a CSV file says of all of it.

    Attributes:
        separator: of fields.
        names: of the columns.
        surplus: empty fields that rows have beyond those of the header.
        newline: ends lines.
        escaped: whether quotes in fields stand behind backslashes.
    """

    separator: str
    names: list[str]
    surplus: int
    newline: bytes
    escaped: bool


class Block(NamedTuple):
    """Rows of a text file.

    Attributes:
        rows: in their order.
        bad: of each line that is no row, what is wrong with it.
        numbers: columns that are read as numbers, and whether points part thousands in them; None before any row.
    """

    rows: pl.DataFrame
    bad: list[str]
    numbers: dict[str, bool] | None


def read_csv(
    contents: Iterable[tuple[bytes, bool]], uri: str, numbers: dict[str, bool] | None = None
) -> Iterator[Block]:
    """Reads a CSV file in UTF-8 block by block.

    Fields too many are left out where they are empty, fields too few where their columns have no name. Lines without a
    value are none. Columns that are no `TEXT` and hold numbers (with a decimal comma, if the separator is another) or
    booleans become floats.

    Args:
        contents: the file in parts that end anywhere, and whether they are the last one.
        uri: of the file.
        numbers: of `Block`, as an earlier file of the table has them; else the first block with rows decides.

    Raises:
        UserError: the file is empty, a name stands twice in its header, or a quote is never closed.
    """
    dialect: Dialect | None = None
    held, skip, line = b"", 0, 0  # lines before the rows of a block, and before the block
    for content, last in contents:
        if dialect is None:
            dialect, skip = _dialect(content, uri)
        content = held + (_quotes_doubled(content) if dialect.escaped else content)
        end = len(content) if last else _end_of_rows(content, dialect)
        if not end and len(content) > LONGEST:
            raise UserError(_unclosed(content, uri, dialect.separator, line))
        block, held = content[:end], content[end:]
        if not block:
            continue
        if skip == 0:  # bad lines are looked for behind the end of another one
            block, skip, line = dialect.newline + block, 1, line - 1
        rows, bad = _read_block(block, uri, dialect, skip, line)
        if numbers is None and rows.height:  # a header alone says nothing
            numbers = numeric(rows, dialect.separator)
        known = {name: thousands for name, thousands in (numbers or {}).items() if name in rows.columns}
        typed = (as_number(rows[name], dialect.separator, thousands=points) for name, points in known.items())
        yield Block(rows.with_columns(typed), bad, numbers)
        line, skip = line + block.count(dialect.newline), 0


def _dialect(content: bytes, uri: str) -> tuple[Dialect, int]:
    """Returns how a file is written, by its start, and the number of lines up to the end of its header."""
    separator, names, skip = header(content, uri)
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise UserError(f"{uri} has two columns {twice[0]!r}: rename or remove one.")
    newline = b"\n" if b"\n" in content else b"\r"
    surplus = _surplus(content, separator, skip, len(names))
    return Dialect(separator, names, surplus, newline, _escaped(content, separator)), skip


def _end_of_rows(content: bytes, dialect: Dialect) -> int:
    """Returns where the last row ends that is there whole; 0 where none is."""
    if b'"' not in content:
        return content.rfind(dialect.newline) + 1
    end, other = re.escape(dialect.newline), re.escape(dialect.separator.encode())
    field = rb'(?:"[^"]*+(?:""[^"]*+)*+"|(?!"))[^%b%b]*+' % (end, other)
    found = re.match(rb"(?:(?:%b%b)*+%b%b)*+" % (field, other, field, end), content)
    return found.end() if found else 0


def _read_block(content: bytes, uri: str, dialect: Dialect, skip: int, line: int) -> tuple[pl.DataFrame, list[str]]:
    """Reads whole rows as text, and says what is wrong with lines that are none, see `_rows`."""
    names, width = dialect.names, len(dialect.names)
    content = content if content.endswith((b"\n", b"\r")) else content + b"\n"
    wide = [*names, *[""] * dialect.surplus]
    rows, bad = _rows(content, uri, dialect.separator, wide, skip, width, line)
    if any(rows[:, position].count() for position in range(width, len(wide))):
        rows, bad = _rows(content, uri, dialect.separator, names, skip, width, line)
    rows = rows[:, :width]
    if (blank := rows.select(pl.all_horizontal(pl.all().is_null())).to_series()).any():
        rows = rows.filter(~blank)
    return rows.rename(dict(zip(rows.columns, _unique(names), strict=True))), bad


def _escaped(content: bytes, separator: str) -> bool:
    """Returns whether a sample has a quote behind a backslash that ends no field, as MySQL writes."""
    other = re.escape(separator.encode())
    escaped = rb'(?m)(?:^|%b)"(?:[^"\\]|\\[^"])*\\"[^"\r\n%b]' % (other, other)
    return b'\\"' in content[:SAMPLE_BYTES] and re.search(escaped, content[:SAMPLE_BYTES]) is not None


def _quotes_doubled(content: bytes) -> bytes:
    """Writes quotes behind backslashes twice instead."""
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
    content: bytes, uri: str, separator: str, names: list[str], skip: int, width: int, line: int
) -> tuple[pl.DataFrame, list[str]]:
    """Reads the rows under a header of `width` columns as text, in columns 0, 1, … for the names.

    The block begins behind so many lines.

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
                use_threads=False, column_names=columns, skip_rows=skip, block_size=len(content) + 1
            ),
            pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=collect),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=True, null_values=[""]
            ),
        )
        nothing = pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
        rows = pl.concat([nothing, *(pl.DataFrame(batch) for batch in reader)])  # block by block: the file is held, too
    except pa.ArrowInvalid as error:
        raise UserError(_unclosed(content, uri, separator, line)) from error
    ends = [rows.item(-1, -1)] if rows.height else []
    ends += [_fields(row.text, separator)[-1] for row in ragged[-1:]]
    tail = content.rstrip(b"\r\n")
    if any(end and "\n" in end.strip() and tail.endswith(end.strip().encode()) for end in ends):  # no quote after it
        raise UserError(_unclosed(content, uri, separator, line))
    return _mended(rows, ragged, content, separator, names, skip, width, line)


def _unique(names: list[str]) -> list[str]:
    """Gives columns without a name one each."""
    return [name or f"Unnamed: {position}" for position, name in enumerate(names)]


def _mended(
    rows: pl.DataFrame,
    ragged: list[Any],
    content: bytes,
    separator: str,
    names: list[str],
    skip: int,
    header: int,
    before: int,
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
        bad += [f"line {before + line + n} has {found}" for n in range(len(re.split("\r\n?|\n", row.text)))]
    if mended:
        kept = pl.Series(range(rows.height + len(ragged)), dtype=pl.Int64)
        kept = kept.filter(~kept.is_in([row.number - skip - 1 for row in ragged]))
        back = pl.DataFrame(list(mended.values()), schema=rows.schema, orient="row")
        both = [rows.with_columns(kept.alias("at")), back.with_columns(pl.Series("at", list(mended), pl.Int64))]
        rows = pl.concat(both).sort("at").drop("at")
    return rows, bad


def _fields(text: str, separator: str) -> list[str]:
    with _fields_of(len(text)):
        return next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [""])


@contextlib.contextmanager
def _fields_of(size: int) -> Iterator[None]:
    """Lets fields be so long for the length of a block: Python's reader takes 128 KiB at most."""
    limit = csv.field_size_limit(size + 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


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


def _unclosed(content: bytes, uri: str, separator: str, before: int) -> str:
    """Says on which line the quote stands that swallows the rest of a file; so many lines are before the content."""
    line, ends = 1, 0
    with _fields_of(len(content)):
        reader = csv.reader(io.StringIO(content.decode(errors="replace"), newline=""), delimiter=separator)
        for _ in reader:
            line, ends = ends + 1, reader.line_num
    return f'{uri} has a quote (") on line {before + line} that is never closed: close it, or write it twice.'


def numeric(rows: pl.DataFrame, separator: str) -> dict[str, bool]:
    """Returns the columns of text that hold nothing but numbers and booleans, and whether points part thousands there.

    Labels may hold other text.
    """
    found = {}
    for column in rows.select(pl.exclude(*TEXT)):
        text = _bare(column)
        thousands = separator != "," and _has_thousands(text)
        numbers = as_number(text, separator, thousands=thousands).count()
        if numbers and (column.name == "label" or numbers == text.count()):
            found[column.name] = thousands
    return found


def as_number(column: pl.Series, separator: str, *, thousands: bool) -> pl.Series:
    """Returns a column of text as floats, booleans as 1 and 0; null where it holds other text.

    If fields are parted by anything but a comma, commas are decimal ones.
    """
    text = _bare(column)
    if thousands:
        text = text.str.replace_all(".", "", literal=True)
    text = text if separator == "," else text.str.replace(",", ".", literal=True)
    return text.cast(pl.Float64, strict=False)


def _bare(column: pl.Series) -> pl.Series:
    lower = column.str.strip_chars().str.to_lowercase()
    return lower.set(lower.is_in(MISSING), None).replace({"true": "1", "false": "0"})


def _has_thousands(text: pl.Series) -> bool:
    """Returns whether a column has decimal commas, and thousands at all its points."""
    pointed = text.filter(text.str.contains(".", literal=True))
    commas = text.str.contains(",", literal=True).any()
    return bool(len(pointed) and commas and pointed.str.contains(THOUSANDS).all())
