"""Times: every unambiguous form of a moment reads back equal; what could be another moment is not read."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.stages.ingest.times import parse, remedy

MOMENTS = st.datetimes(datetime(1990, 1, 1), datetime(2030, 1, 1))  # noqa: DTZ001 - made aware below
OFFSETS = st.integers(-14 * 4, 14 * 4).map(lambda quarters: timezone(timedelta(minutes=15 * quarters)))


def compact(moment: datetime) -> str:
    return moment.strftime("%Y%m%dT%H%M%S.%f%z")


FORMS = (
    lambda t: t.isoformat(),
    lambda t: t.isoformat(" "),
    lambda t: t.strftime("%Y-%m-%d %H:%M:%S.%f%z"),
    lambda t: t.strftime("%Y/%m/%d %H:%M:%S,%f %z"),
    lambda t: f"  {t.isoformat()}\t",
    compact,
    lambda t: t.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    lambda t: t.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f UTC"),
    lambda t: t.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f"),
    lambda t: t.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f000 +0000 UTC"),
    lambda t: f"{t.isoformat()}[Europe/Paris]",
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(MOMENTS, OFFSETS, st.sampled_from(FORMS)), min_size=1, max_size=20))
def test_iso_8601_in_all_its_forms_in_one_column_reads_back_equal(drawn) -> None:
    moments = [moment.replace(tzinfo=offset) for moment, offset, _ in drawn]
    texts = [form(moment) for moment, (_, _, form) in zip(moments, drawn, strict=True)]
    assert parse(pl.Series("timestamp", texts)).to_list() == moments


@settings(max_examples=50, deadline=None)
@given(
    moments=st.lists(st.datetimes(datetime(2002, 1, 1), datetime(2030, 1, 1)), min_size=1, max_size=5),  # noqa: DTZ001
    unit=st.sampled_from([(10**6, 1), (10**3, 1), (1, 1), (1, 1000)]),
    written=st.sampled_from(["int", "float", "text", "decimal text"]),
)
def test_unix_time_in_any_unit_reads_back_equal(moments, unit, written) -> None:
    by, times = unit
    stamps = [micros(moment.replace(tzinfo=UTC)) // by * by for moment in moments]
    numbers = [stamp // by * times for stamp in stamps]
    if written == "decimal text":  # seconds, to the microsecond
        stamps = [micros(moment.replace(tzinfo=UTC)) for moment in moments]
        values: list[object] = [f"{stamp // 10**6}.{stamp % 10**6:06d}" for stamp in stamps]
    else:
        values = [{"int": int, "float": float, "text": str}[written](number) for number in numbers]
    found = parse(pl.Series("timestamp", values)).dt.epoch("us").to_list()
    assert found == pytest.approx(stamps, rel=0, abs=1 if written == "float" and times > 1 else 0)


@settings(max_examples=50, deadline=None)
@given(
    days=st.lists(st.dates(date(1990, 1, 1), date(2100, 12, 31)), min_size=1, max_size=9),
    kind=st.sampled_from([int, float, str]),
    missing=st.booleans(),
)
def test_date_keys_are_dates(days, kind, missing) -> None:
    keys = [kind(int(f"{day:%Y%m%d}")) if kind is not str else f"{day:%Y%m%d}" for day in days]
    found = parse(pl.Series("timestamp", keys + [kind(0)] * missing)).to_list()
    assert found[: len(days)] == [datetime(day.year, day.month, day.day, tzinfo=UTC) for day in days]
    assert found[len(days) :] == [None] * missing


@pytest.mark.parametrize(("key", "hour"), [(20240304101112, (10, 11, 12)), (202403041011, (10, 11))])
def test_date_keys_may_have_a_time(key: int, hour: tuple[int, ...]) -> None:
    assert parse(pl.Series([key])).to_list() == [datetime(2024, 3, 4, *hour, tzinfo=UTC)]


def test_an_impossible_date_key_is_no_unix_time() -> None:
    assert parse(pl.Series([20240304, 20240230, 20241301])).is_null().to_list() == [False, True, True]


REFUSED = {
    "03/04/2024": "day and month",
    "04.03.2024 10:11": "day and month",
    "25-12-2023": "day and month",
    "3/4/24": "two digits",
    "24-03-04": "two digits",
    "45355": "Excel",
    "45355.42": "Excel",
    "45355,42": "Excel",
    "1234567": "1970",
    "28400000": "1970",  # minutes
    "473000": "1970",  # hours
    "25122023": "1970",  # day, month and year
    "0": "1970",
    "2024": "1970",
    "1.7E+09": "ISO 8601",
    "-1": "ISO 8601",
    "oops": "ISO 8601",
    "": "ISO 8601",
    "2024-02-30": "ISO 8601",
    "2024-03-04 10:11:12 PM": "ISO 8601",
    "2024-03-04 25:00:00": "ISO 8601",
    "2024-03-04T10:11:12+99:00": "ISO 8601",
    "638450682720000000": "ISO 8601",  # ticks of .NET
    "133540206720000000": "ISO 8601",  # Windows
}


@pytest.mark.parametrize("value", REFUSED)
def test_what_could_be_another_time_is_refused_with_what_to_write(value: str) -> None:
    assert parse(pl.Series([value, "2024-03-04"])).is_null().to_list() == [True, False]
    assert REFUSED[value] in remedy(value)
    if value.replace(".", "").isdigit():
        number = float(value) if "." in value else int(value)
        assert parse(pl.Series([number, 1_709_547_072])).is_null().to_list() == [True, False]
        assert REFUSED[value] in remedy(number)


def test_seconds_that_were_read_as_larger_units_are_refused() -> None:
    wrong = datetime(1970, 1, 20, 18, 52, 27, tzinfo=UTC)
    assert parse(pl.Series([wrong])).to_list() == parse(pl.Series([wrong.isoformat()])).to_list() == [None]
    assert parse(pl.Series([date(1971, 7, 20)])).to_list() == [datetime(1971, 7, 20, tzinfo=UTC)]


@pytest.mark.parametrize("mark", ["0001-01-01 00:00:00", "1899-12-30", "1900-01-01T00:00:00Z"])
def test_marks_for_no_date_are_no_times(mark: str) -> None:
    assert parse(pl.Series([mark, "2024-03-04"])).null_count() == 1


def test_timestamps_that_only_order_may_be_small() -> None:
    found = parse(pl.Series([1, 2, 45355, 20240304]), order=True)
    assert found.dt.epoch("s").to_list() == [1, 2, 45355, 20240304]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_typed_columns_are_taken_as_they_are(unit: str) -> None:
    moment = datetime(2024, 3, 4, 10, 11, 12, tzinfo=UTC)
    naive = pl.Series([moment.replace(tzinfo=None), None], dtype=pl.Datetime(unit))
    paris = naive.dt.replace_time_zone("UTC").dt.convert_time_zone("Europe/Paris")
    assert parse(naive).to_list() == parse(paris).to_list() == [moment, None]
