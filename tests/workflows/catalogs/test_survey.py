from __future__ import annotations

import datetime as dt
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from storage import blocks
from workflows.catalogs.survey import sample, scan, survey
from workflows.engine.definition import load
from workflows.engine.preflight import preflight
from workflows.init import init

TEXT = st.sampled_from([None, "", " ", "vase", " red ", "nan"])
ROWS = st.lists(
    st.fixed_dictionaries(
        {"item_id": st.sampled_from(["a", "b", "c", "", "NULL", None]), "title": TEXT, "media": TEXT}
    ),
    min_size=1,
    max_size=8,
)


@given(rows=ROWS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_counts_are_those_of_the_rows(rows: list[dict], suffix: str, tmp_path: Path) -> None:
    if suffix == "csv":  # in which a line without a value is no row
        rows = [row for row in rows if any((value or "").strip() for value in row.values())]
    assume(rows)
    table = pl.DataFrame(rows, schema=dict.fromkeys(("item_id", "title", "media"), pl.String))
    for old in tmp_path.iterdir():
        old.unlink()
    writers = {"parquet": table.write_parquet, "csv": table.write_csv, "jsonl": table.write_ndjson}
    writers[suffix](tmp_path / f"items.{suffix}")
    found = survey(str(tmp_path))

    def says(row: dict, name: str) -> bool:
        return (row[name] or "").strip() not in ("", "nan", "NULL")

    assert found.items == len(rows)
    for name in ("title", "media"):
        assert found.filled[name] == sum(says(row, name) for row in rows)
    assert found.filled["description"] == found.filled["attributes"] == 0
    assert found.bare == sum(not says(row, "title") and not says(row, "media") for row in rows)
    named = [row for row in rows if says(row, "item_id")]
    assert found.unnamed == len(rows) - len({row["item_id"] for row in named})
    assert found.usable == len({row["item_id"] for row in named if says(row, "title") or says(row, "media")})
    assert (found.events, found.labels, found.unread) == (None, None, ())


def test_lists_structs_and_labels_are_counted(tmp_path: Path) -> None:
    media = [[], None, [{"uri": "x.jpg", "kind": "image"}]]
    pl.DataFrame({"item_id": ["a", "b", "c"], "media": media, "brand": 1}).write_parquet(tmp_path / "items.parquet")
    log = {"user_id": ["u"] * 3, "item_id": ["a"] * 3, "timestamp": [1, 2, 3], "stars": ["1", "x", "4.5"]}
    pl.DataFrame(log).write_parquet(tmp_path / "interactions.parquet")
    found = survey(str(tmp_path), label="stars")
    assert (found.filled["media"], found.bare, found.unread) == (1, 2, ("brand",))
    assert (found.events, found.labels, found.columns) == (3, (1.0, 4.5), tuple(log))
    assert survey(str(tmp_path)).labels is None
    pl.DataFrame({"item_id": ["a", "b"]}).write_parquet(tmp_path / "items.parquet")
    assert survey(str(tmp_path), media="{item_id}.jpg").filled["media"] == 2


def test_columns_of_other_types_in_other_files_come_together(tmp_path: Path) -> None:
    for name, user in (("0", [1, 2]), ("1", ["a", "b"]), ("2", [3.0, None])):
        (tmp_path / "log").mkdir(exist_ok=True)
        pl.DataFrame({"user_id": user, "x": [1, 2]}).write_parquet(tmp_path / "log" / f"{name}.parquet")
    for found in (scan(str(tmp_path / "log")).collect(), sample(str(tmp_path / "log"))):
        assert found["user_id"].to_list() == ["1", "2", "a", "b", "3.0", None]


@pytest.mark.parametrize("other", ['["a", "b"]', '{"x": 1}', "5"])
def test_json_of_other_types_in_other_blocks_is_text(
    tmp_path: Path, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 20)
    values = ['"text"', '[{"y": 2}]', other, "null"]
    (tmp_path / "items.jsonl").write_text("".join(f'{{"item_id": 1, "media": {value}}}\n' for value in values))
    found = scan(str(tmp_path / "items.jsonl")).collect()
    assert found["media"].to_list() == ["text", '[{"y": 2}]', other, None]


def test_types_of_parquet_that_say_the_same_are_one(tmp_path: Path) -> None:
    """Categories, as pandas writes them, and times with and without a zone, in files of one table."""
    (tmp_path / "interactions").mkdir()
    pl.DataFrame({"item_id": ["a", "b"], "media": ["a.jpg", "b.jpg"]}).cast({"media": pl.Categorical}).write_parquet(
        tmp_path / "items.parquet"
    )
    when = pl.Series([dt.date(2026, 1, 1), dt.date(2026, 1, 2)]).cast(pl.Datetime("us"))
    log = pl.DataFrame({"user_id": ["u", "v"], "item_id": ["a", "b"], "timestamp": when, "label": ["0", "1"]})
    log.cast({"label": pl.Categorical, "user_id": pl.Categorical}).write_parquet(
        tmp_path / "interactions" / "a.parquet"
    )
    zoned = log.with_columns(pl.col("timestamp").dt.replace_time_zone("UTC"))
    zoned.write_parquet(tmp_path / "interactions" / "b.parquet")
    local = zoned.with_columns(pl.col("timestamp").dt.convert_time_zone("Europe/Berlin"))
    local.write_parquet(tmp_path / "interactions" / "c.parquet")
    found = survey(str(tmp_path))
    assert (found.filled["media"], found.events, found.labels) == (2, 6, (0.0, 1.0))
    rows = scan(str(tmp_path / "interactions")).collect()
    assert rows["timestamp"].to_list() == 3 * when.dt.replace_time_zone("UTC").to_list()
    assert rows["user_id"].to_list() == 3 * ["u", "v"]
    init(str(tmp_path), str(tmp_path / "mine.yaml"))
    preflight(load(str(tmp_path / "mine.yaml"), []), str(tmp_path / "run"))
