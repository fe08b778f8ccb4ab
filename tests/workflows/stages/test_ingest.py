from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest

from storage.errors import UserError
from storage.run import RunDir
from workflows import tables
from workflows.stage import Context
from workflows.stages import ingest


@pytest.fixture
def context(tmp_path):
    (tmp_path / "catalog").mkdir()
    return Context(
        run=RunDir(str(tmp_path / "run")),
        catalog=str(tmp_path / "catalog"),
        seed=0,
        fingerprint="f",
        log=lambda line: None,
        progress=lambda done, total: None,
    )


def run(context: Context):
    tables.check(context.catalog, needs_interactions=False)
    return ingest.run(ingest.Config(), context)


def test_csv_jsonl_and_parquet_of_the_same_catalogue_come_out_equal(context, tmp_path):
    pl.DataFrame(
        {
            "item_id": ["1", "2", "3"],
            "title": ["a", None, "c"],
            "media": [[{"uri": "x.jpg", "kind": "image"}], [], [{"uri": "y.mp4", "kind": "video"}]],
            "attributes": [[{"key": "genre", "value": "noir"}], [], []],
        }
    ).write_parquet(tmp_path / "p.parquet")
    (tmp_path / "p.csv").write_text("item_id,title,media\n1,a,x.jpg\n2,,\n3,c,y.mp4\n")
    (tmp_path / "p.jsonl").write_text(
        '{"item_id": "1", "title": "a", "media": ["x.jpg"], "attributes": {"genre": "noir"}}\n'
        '{"item_id": "2", "media": []}\n'
        '{"item_id": "3", "title": "c", "media": ["y.mp4"]}\n'
    )
    seen = []
    for suffix in ("parquet", "csv", "jsonl"):
        for old in (tmp_path / "catalog").iterdir():
            old.unlink()
        (tmp_path / f"p.{suffix}").rename(tmp_path / "catalog" / f"items.{suffix}")
        assert run(context).rows_out == 3
        rows = context.run.read_table("catalog", "items").to_pylist()
        seen.append([(r["item_id"], r["title"], [(m["uri"], m["kind"]) for m in r["media"] or []]) for r in rows])
        if suffix != "csv":
            assert dict(rows[0]["attributes"]) == {"genre": "noir"}
    assert (
        seen[0]
        == seen[1]
        == seen[2]
        == [("1", "a", [("x.jpg", "image")]), ("2", None, []), ("3", "c", [("y.mp4", "video")])]
    )


def test_bad_items_leave_with_their_reason(context, tmp_path):
    pl.DataFrame({"item_id": ["a", "", None, "a", "b", "  "], "title": ["1", "2", "3", "4", "5", "6"]}).write_parquet(
        tmp_path / "catalog" / "items.parquet"
    )
    result = run(context)
    assert (result.rows_in, result.rows_out, result.rejected) == (6, 2, 4)
    assert context.run.read_table("catalog", "items")["title"].to_pylist() == ["1", "5"]
    codes = [(r["item_id"], r["stage"], r["code"]) for r in context.run.read_table("rejects", "ingest").to_pylist()]
    assert codes == [
        ("", "ingest", "no_item_id"),
        (None, "ingest", "no_item_id"),
        ("a", "ingest", "duplicate_item_id"),
        ("", "ingest", "no_item_id"),
    ]


def test_bad_events_are_counted_and_dropped():
    noon = datetime(2024, 1, 1, 12, tzinfo=UTC)
    rows = [
        ("u", "a", noon, 1.0),
        ("u", "a", noon, 1.0),  # the same event again
        ("u", "a", noon, 0.0),  # another label: another event
        ("", "a", noon, 1.0),
        ("u", "nope", noon, 1.0),
        ("u", None, noon, 1.0),
        ("u", "b", None, 1.0),
        ("u", "b", datetime(2999, 1, 1, tzinfo=UTC), 1.0),
        ("u", "b", noon, None),
    ]
    raw = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "label"], orient="row")
    events, dropped = ingest.clean_events(ingest.canonical_events(raw, "log"), pl.Series(["a", "b"]))
    assert events.height == 2
    assert dropped == {
        "no_user_id": 1,
        "unknown_item": 2,
        "no_timestamp": 1,
        "future_timestamp": 1,
        "no_label": 1,
        "duplicate_event": 1,
    }


@pytest.mark.parametrize(
    "values",
    [
        ["2020-01-02T03:04:05Z"],
        ["2020-01-02 03:04:05"],
        [1577934245],
        [1577934245.0],
        [1577934245000],
        [1577934245000000],
        [datetime(2020, 1, 2, 3, 4, 5)],  # noqa: DTZ001 - a column without a zone is read as UTC
        [datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)],
    ],
    ids=["iso z", "iso", "s", "float s", "ms", "us", "naive", "aware"],
)
def test_timestamps_of_all_kinds_mean_the_same(values):
    raw = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": values})
    stamp = ingest.canonical_events(raw, "log")["timestamp"]
    assert stamp.dtype == pl.Datetime("us", "UTC")
    assert stamp.to_list() == [datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)]


def test_written_types_are_those_of_the_contract(context, tmp_path):
    (tmp_path / "catalog" / "items.csv").write_text("item_id\na\n")
    (tmp_path / "catalog" / "interactions.csv").write_text("user_id,item_id,timestamp,label,hour\nu,a,5,1,3\n")
    run(context)
    items = {field.name: str(field.type) for field in context.run.read_table("catalog", "items").schema}
    events = {field.name: str(field.type) for field in context.run.read_table("catalog", "interactions").schema}
    assert (items["item_id"], items["title"], items["attributes"][:18]) == ("string", "string", "map<string, string")
    assert events == {
        "user_id": "string",
        "item_id": "string",
        "timestamp": "timestamp[us, tz=UTC]",
        "label": "float",
        "hour": "float",
    }


def test_numeric_columns_become_context_and_text_ones_do_not():
    raw = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [1], "hour": [3], "page": ["x"]})
    assert ingest.canonical_events(raw, "log").columns == ["user_id", "item_id", "timestamp", "hour"]


def test_ratings_are_no_labels():
    raw = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [1], "label": [4.5]})
    with pytest.raises(UserError, match="labels outside 0 … 1"):
        ingest.canonical_events(raw, "log")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("items.csv", "id,title\n1,a\n", "has no column 'item_id': rename 'id'"),
        ("items.csv", "item_id,title\n", "has no rows"),
        ("items.parquet", "junk", "cannot be read"),
        ("other.csv", "a\n1\n", "has no items table"),
    ],
)
def test_unusable_catalogues_are_refused(context, tmp_path, name, content, says):
    (tmp_path / "catalog" / name).write_text(content)
    with pytest.raises(UserError) as caught:
        tables.check(context.catalog, needs_interactions=False)
    assert says in str(caught.value)
