from __future__ import annotations

import dataclasses
import shutil
from datetime import UTC, datetime

import polars as pl
import pytest

from storage import tables
from storage.errors import UserError
from storage.run import RunDir
from workflows.engine.registry import stage
from workflows.engine.stage import Context
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


def run(context: Context, **config):
    tables.check(context.catalog, needs_interactions=False)
    return stage("ingest").run(ingest.Config(**config), context)


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


NAN = float("nan")


@pytest.mark.parametrize(
    "values",
    [
        [1577934245.0, NAN, 1e30, -1e30, float("inf"), -1e12],
        ["1577934245", "oops", "", "1e30"],
        ["2020-01-02T03:04:05Z", "oops", "", "2020-13-01T00:00:00Z"],
        [datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC), None],
    ],
    ids=["unix", "unix text", "iso", "aware"],
)
def test_a_timestamp_that_cannot_be_read_costs_its_own_event(values):
    raw = pl.DataFrame({"user_id": "u", "item_id": "a", "timestamp": values, "label": 1})
    events, dropped = ingest.clean_events(ingest.canonical_events(raw, "log"), pl.Series(["a"]))
    assert events["timestamp"].to_list() == [datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)]
    assert dropped["no_timestamp"] == len(values) - 1


@pytest.mark.parametrize(
    ("values", "kept"),
    [(["1", "oops", "0", ""], [1, 0]), ([1.0, NAN, 0.0, float("inf")], [1, 0]), ([True, None, False], [1, 0])],
    ids=["text", "float", "bool"],
)
def test_a_label_that_cannot_be_read_costs_its_own_event(values, kept):
    raw = pl.DataFrame({"user_id": "u", "item_id": "a", "timestamp": range(len(values)), "label": values})
    events, dropped = ingest.clean_events(ingest.canonical_events(raw, "log"), pl.Series(["a"]))
    assert events["label"].to_list() == kept
    assert dropped["no_label"] == len(values) - 2


def test_context_that_is_not_finite_is_unknown():
    raw = pl.DataFrame({"user_id": "u", "item_id": "a", "timestamp": 1, "hour": [3.0, NAN, float("inf"), 1e300, None]})
    assert ingest.canonical_events(raw, "log")["hour"].to_list() == [3, None, None, None, None]


@pytest.mark.parametrize("column", ["timestamp", "label"])
@pytest.mark.parametrize("values", [["oops", ""], [NAN, NAN], [None, None], [[1], [2]], [{"a": 1}, {"a": 2}]])
def test_a_column_in_which_nothing_can_be_read_is_named(column, values):
    raw = pl.DataFrame({"user_id": "u", "item_id": "a", "timestamp": [1, 2], "label": [1, 0]})
    with pytest.raises(UserError, match=f"column '{column}' that can be read"):
        ingest.canonical_events(raw.with_columns(pl.Series(column, values)), "log")


LOSSES = {
    "no_user_id": ",a,1,1",
    "unknown_item": "u,nope,1,1",
    "no_timestamp": "u,a,oops,1",
    "future_timestamp": "u,a,32503680000,1",
    "no_label": "u,a,1,",
    "duplicate_event": "u,a,2,1",
}


@pytest.mark.parametrize("reason", LOSSES)
def test_a_log_that_loses_more_than_its_share_is_refused(context, tmp_path, reason):
    (tmp_path / "catalog" / "items.csv").write_text("item_id\na\n")
    log = tmp_path / "catalog" / "interactions.csv"
    log.write_text("\n".join(["user_id,item_id,timestamp,label", "u,a,2,1", "u,a,3,1", *[LOSSES[reason]] * 2]) + "\n")
    assert run(context).metrics["interactions"]["dropped"][reason] == 2  # a half is allowed
    for folder in ("catalog", "rejects"):
        shutil.rmtree(tmp_path / "run" / folder)
    with log.open("a") as file:
        file.write(LOSSES[reason] + "\n")
    with pytest.raises(UserError) as caught:
        run(context)
    assert f"2 usable of 5 events, 3 dropped as {reason}" in str(caught.value)
    assert "max_dropped_share" in str(caught.value)
    assert not (tmp_path / "run" / "catalog").exists()
    assert run(context, max_dropped_share=0.6).metrics["interactions"]["rows_out"] == 2


def test_limits_do_not_make_a_finished_stage_run_again():
    assert ingest.Config(max_dropped_share=0.9, max_reject_share=0.9).identity() == ingest.Config().identity()


@pytest.mark.parametrize(("rows", "says"), [("", "has no rows"), ("u,nope,1\n", "0 usable of 1 events")])
def test_a_log_without_a_usable_event_is_refused_at_any_share(context, tmp_path, rows, says):
    (tmp_path / "catalog" / "items.csv").write_text("item_id\na\n")
    (tmp_path / "catalog" / "interactions.csv").write_text("user_id,item_id,timestamp\n" + rows)
    with pytest.raises(UserError, match=says):
        run(context, max_dropped_share=1)


@pytest.mark.parametrize(
    ("content", "timestamps"),
    [
        ('{"timestamps": "order"}', "order"),
        ('{"timestamps": "real", "notes": []}', "real"),
        ('{"timestamps": 3}', None),
        ('{"notes": []}', None),
        ('["order"]', None),
        ("{order", None),
        ("\xff", None),
        (None, None),
    ],
)
def test_the_meaning_of_timestamps_is_recorded_where_the_catalogue_tells_it(context, tmp_path, content, timestamps):
    (tmp_path / "catalog" / "items.csv").write_text("item_id\na\n")
    (tmp_path / "catalog" / "interactions.csv").write_text("user_id,item_id,timestamp\nu,a,1\n")
    before = tables.signature(context.catalog)
    if content is not None:
        (tmp_path / "catalog" / "catalog.json").write_text(content, encoding="latin-1")
    lines: list[str] = []
    metrics = run(dataclasses.replace(context, log=lines.append)).metrics
    assert metrics.get("timestamps") == timestamps
    assert ("timestamps" in metrics) == (timestamps is not None)
    assert len([line for line in lines if "order" in line]) == (timestamps == "order")
    assert (tables.signature(context.catalog) == before) == (content is None)


def test_a_log_that_has_left_the_catalogue_leaves_the_run(context, tmp_path):
    (tmp_path / "catalog" / "items.csv").write_text("item_id\na\n")
    log = tmp_path / "catalog" / "interactions.csv"
    log.write_text("user_id,item_id,timestamp\nu,a,1\n")
    run(context)
    assert (tmp_path / "run" / "catalog" / "interactions").exists()
    log.unlink()
    run(context)
    assert not (tmp_path / "run" / "catalog" / "interactions").exists()


def test_empty_media_and_half_attributes_are_left_out(context, tmp_path):
    pairs = [{"key": None, "value": "x"}, {"key": "genre", "value": "noir"}, {"key": "year", "value": None}, None]
    pl.DataFrame(
        {
            "item_id": ["1", "2", "3", "4"],
            "media": ["a.jpg|", "", None, " | b.mp4"],
            "attributes": [pairs, [], None, pairs[:1]],
        }
    ).write_parquet(tmp_path / "catalog" / "items.parquet")
    run(context)
    rows = context.run.read_table("catalog", "items").to_pylist()
    assert [row["media"] and [m["uri"] for m in row["media"]] for row in rows] == [["a.jpg"], [], None, ["b.mp4"]]
    assert [row["attributes"] for row in rows] == [[("genre", "noir")], [], None, []]


@pytest.mark.parametrize("media", ['["a.jpg", "", null]', '[{"uri": "a.jpg"}, {"uri": " "}, {"uri": null}, null]'])
def test_empty_media_in_lists_are_left_out(context, tmp_path, media):
    (tmp_path / "catalog" / "items.jsonl").write_text(f'{{"item_id": "1", "media": {media}, "attributes": {{}}}}\n')
    run(context)
    assert context.run.read_table("catalog", "items")["media"].to_pylist() == [[{"uri": "a.jpg", "kind": "image"}]]


def test_attributes_of_another_shape_are_refused():
    raw = pl.DataFrame({"item_id": ["1"], "attributes": [[{"name": "genre", "value": "noir"}]]})
    with pytest.raises(UserError, match="pairs of key and value"):
        ingest.canonical_items(raw, "items")


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


def test_ratings_become_labels_and_leave_the_context(context, tmp_path):
    (tmp_path / "catalog" / "items.csv").write_text("item_id,title\na,vase\n")
    rows = "".join(f"u,a,{n + 1},{rating},7\n" for n, rating in enumerate([1, 3.5, 4, 5]))
    (tmp_path / "catalog" / "interactions.csv").write_text("user_id,item_id,timestamp,stars,hour\n" + rows)
    run(context, label="stars", positive_from=4)
    log = pl.DataFrame(context.run.read_table("catalog", "interactions"))
    assert log["label"].to_list() == [0, 0, 1, 1]
    assert log.columns == ["user_id", "item_id", "timestamp", "label", "hour"]


def test_media_that_are_named_by_ids_get_their_uris(context, tmp_path):
    (tmp_path / "catalog" / "items.csv").write_text("item_id,title\na,vase\n 7 ,lamp\n")
    run(context, media="clips/{item_id}.mp4")
    rows = context.run.read_table("catalog", "items").to_pylist()
    assert [row["media"] for row in rows] == [[{"uri": f"clips/{name}.mp4", "kind": "video"}] for name in ("a", "7")]
