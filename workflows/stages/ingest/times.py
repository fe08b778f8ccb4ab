"""Timestamps in all forms that mean one moment; what could mean two is not read."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import polars as pl

TYPE = pl.Datetime("us", "UTC")
YEARS = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)  # what Python and its plots can show
# ISO 8601, the year first, each part with or without its separator; without an offset it is UTC.
ISO = (
    r"(?i)^(\d{4})(?:[-/.](\d{1,2})[-/.](\d{1,2})|(\d{2})(\d{2}))"
    r"(?:(?:T|\s+)(\d{1,2})(?::?(\d{2})(?::?(\d{2})(?:[.,](\d{1,9}))?)?)?)?"
    r"\s*(?:Z|UTC|GMT|\+00:?00\s*(?:UTC|GMT)|([+-])(\d{2}):?(\d{2})?(?:\[[\w/+-]+\])?)?$"
)
AROUND = " \t\r\n\u00a0\"'"
UNIX = r"^\d{1,19}(?:[.,]\d*)?$"
KEYS = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}  # digits of a date written as a number
KEY_YEARS = 1990, 2100
US_1971 = 31_536_000_000_000
US_FEBRUARY_1970 = 31 * 86_400_000_000
# From, times, by: ns, µs, ms, s. Of 18 digits are numbers of 100 ns since year 1 or 1601, as .NET and Windows count.
UNITS = ((10**18, 1, 1000), (10**14, 1, 1), (10**11, 1000, 1), (0, 1_000_000, 1))
MICROS_END = 10**17
REMEDY = "write timestamps as 2024-03-04T10:11:12Z (ISO 8601) or as Unix time"


def date_digits(values: pl.Series) -> tuple[int, ...]:
    """Returns the lengths, of `KEYS`, that dates written as numbers have in a column."""
    numbers = _written_numbers(values) if values.dtype == pl.String else values
    if not (numbers.dtype == pl.String or numbers.dtype.is_numeric()):
        return ()
    plausible = (numbers.cast(pl.Float64, strict=False) >= 10**7).sum()
    return tuple(digits for digits in KEYS if _dates(numbers, digits).count() >= max(plausible / 10, 1))


def parse(values: pl.Series, *, order: bool = False, digits: tuple[int, ...] | None = None) -> pl.Series:
    """Returns the moments of a column, null where a value means none or more than one.

    Text may be ISO 8601 in any form, or a number. Numbers are Unix time in s, ms, µs or ns by their size, or dates such
    as 20240304 if `digits` says so, or by default if a tenth of them or more are. Numbers that would fall into 1970,
    and moments before February 1970, are something else (days, minutes, a wrong unit, marks for no date), and are not
    read.

    Args:
        values: the column.
        order: the values tell the order of a user's events, as seconds from 1970.
        digits: of `date_digits`, for a larger column.
    """
    dtype = values.dtype
    digits = date_digits(values) if digits is None else digits
    if dtype == pl.String:
        text = values.str.strip_chars(AROUND)
        number = text.str.contains(UNIX)
        numbers = _numbers(_written_numbers(values), order, digits)
        written = _from_1970(_iso(text.set(number, None)), order=order)
        stamps = pl.select(pl.coalesce(numbers, written)).to_series()
    elif dtype.is_numeric():
        stamps = _numbers(values, order, digits)
    elif isinstance(dtype, pl.Datetime | pl.Date):
        zoned = isinstance(dtype, pl.Datetime) and dtype.time_zone is not None
        moments = values.dt.convert_time_zone("UTC") if zoned else values.cast(pl.Datetime("us"), strict=False)
        moments = moments.cast(TYPE, strict=False) if zoned else moments.dt.replace_time_zone("UTC")
        stamps = _from_1970(moments, order=order)
    else:
        return pl.Series(values.name, [None] * len(values), TYPE)
    return stamps.set(~stamps.is_between(*YEARS), None).alias(values.name)


def remedy(value: object) -> str:
    """Says what to write in place of a value that is not read as a time."""
    text = str(value).strip()
    if re.match(r"\d{1,2}([-/.])\d{1,2}\1\d{4}", text):
        return "day and month could be either: write the year first, as in 2024-03-04"
    if re.match(r"\d{1,2}([-/.])\d{1,2}\1\d{2}\b", text):
        return "the year has two digits: write it with four and first, as in 2024-03-04"
    if text.startswith("1970-01-"):
        return f"seconds that were read as milliseconds or smaller units lie there: {REMEDY}"
    if not re.fullmatch(r"\d+([.,]\d*)?", text):
        return REMEDY
    if 20_000 <= float(text.replace(",", ".")) <= 60_000:
        return "it looks like a day number of Excel: format the column as yyyy-mm-dd hh:mm:ss and export it again"
    return (
        f"as Unix time it would lie in 1970: {REMEDY}, or, if it only tells the order of a user's events, "
        '{"timestamps": "order"} in catalog.json'
    )


def _iso(text: pl.Series) -> pl.Series:
    year, month, day, month2, day2, hour, minute, second, fraction, sign, hours, minutes = (
        text.str.extract_groups(ISO).struct.unnest().get_columns()
    )

    def two(*parts: pl.Series) -> pl.Expr:
        return pl.coalesce(*parts, pl.lit("00")).str.zfill(2)

    clock = pl.format(
        "{}-{}-{}T{}:{}:{}", year, two(month, month2), two(day, day2), two(hour), two(minute), two(second)
    )
    moment = clock.str.to_datetime("%Y-%m-%dT%H:%M:%S", time_unit="us", strict=False)
    micros = fraction.fill_null("").str.pad_end(9, "0").str.head(6).cast(pl.Int64)
    offset = hours.cast(pl.Int64).fill_null(0) * 60 + minutes.cast(pl.Int64).fill_null(0)
    offset = offset * pl.select(pl.when(sign == "-").then(-1).otherwise(1)).to_series()
    shifted = moment + pl.duration(microseconds=pl.lit(micros) - pl.lit(offset) * 60_000_000)
    possible = (pl.lit(offset).abs() < 24 * 60) & pl.lit(minutes.cast(pl.Int64).fill_null(0) < 60)
    return pl.select(pl.when(possible).then(shifted).dt.replace_time_zone("UTC")).to_series()


def _written_numbers(values: pl.Series) -> pl.Series:
    """Returns the numbers of a column of text with decimal points, null for other text."""
    text = values.str.strip_chars(AROUND)
    return text.set(~text.str.contains(UNIX), None).str.replace(",", ".", literal=True)


def _dates(values: pl.Series, digits: int) -> pl.Series:
    """Returns the moments of dates that are written as numbers of so many digits, null for other numbers."""
    text = values.cast(pl.Int64, strict=False).cast(pl.String)
    dates = text.set(text.str.len_chars() != digits, None).str.to_datetime(KEYS[digits], time_unit="us", strict=False)
    return dates.set(~dates.dt.year().is_between(*KEY_YEARS), None).dt.replace_time_zone("UTC")


def _numbers(values: pl.Series, order: bool, digits: tuple[int, ...]) -> pl.Series:
    """Reads Unix time, or dates written as numbers; of text, what is no number is null."""
    whole = values.cast(pl.Int64, strict=False)
    real = values.cast(pl.Float64, strict=False)
    micros = pl.lit(None, pl.Int64)
    for least, times, by in reversed(UNITS):
        exact = pl.when(whole.cast(pl.Float64) == real).then(whole * times // by)
        rounded = (real * times / by).round().cast(pl.Int64, strict=False)
        micros = pl.when(real >= least).then(pl.coalesce(exact, rounded)).otherwise(micros)
    micros = pl.when(~pl.lit(real.is_between(MICROS_END, 10**18, closed="left"))).then(micros)
    stamps = pl.select(micros.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")).to_series()
    if order:
        return stamps
    stamps = stamps.set(stamps.dt.epoch("us") < US_1971, None)
    for length in digits:
        stamps = pl.select(pl.coalesce(_dates(values, length), stamps)).to_series()
    return stamps


def _from_1970(stamps: pl.Series, *, order: bool) -> pl.Series:
    """Leaves out moments before February 1970: marks for no date, such as 1899-12-30, and seconds in a larger unit."""
    return stamps if order else stamps.set(stamps.dt.epoch("us") < US_FEBRUARY_1970, None)
