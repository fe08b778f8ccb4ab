from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from operators.log.split import SplitLeaveLast
from storage import tables
from storage.errors import UserError
from storage.hashing import fingerprint, hash_ids
from storage.run import RunDir
from tests.logs import read_log_table
from workflows.catalogs.survey import sample, survey
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.stages.ingest import events as ingest_events
from workflows.stages.ingest.items import canonical_items
from workflows.stages.ingest.stage import Config


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
    tables.check(context.catalog)
    settings = Config(**config)
    identity = json.dumps([settings.identity(), tables.signature(context.catalog)])
    return stage("ingest").run(settings, dataclasses.replace(context, fingerprint=fingerprint(identity)))


def clean(raw: pl.DataFrame, item_ids: pl.Series) -> tuple[pl.DataFrame, dict[str, int]]:
    canonical = ingest_events.canonical_events(raw, "log")
    events, dropped = ingest_events.clean_events(canonical, np.sort(hash_ids(item_ids)), raw, [])
    return events, {reason: loss.events for reason, loss in dropped.items()}


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
        (None, "ingest", "no_item_id"),
        (None, "ingest", "no_item_id"),
        ("a", "ingest", "duplicate_item_id"),
        (None, "ingest", "no_item_id"),
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
    events, dropped = clean(raw, pl.Series(["a", "b"]))
    assert events.height == 2
    assert dropped == {
        "unreadable_row": 0,
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
    stamp = ingest_events.canonical_events(raw, "log")["timestamp"]
    assert stamp.dtype == pl.Datetime("us", "UTC")
    assert stamp.to_list() == [datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)]


NAN = float("nan")
T = 1_577_934_245  # 2020-01-02 03:04:05 UTC


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
    events, dropped = clean(raw, pl.Series(["a"]))
    assert events["timestamp"].to_list() == [datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)]
    assert dropped["no_timestamp"] == len(values) - 1


@pytest.mark.parametrize(
    ("values", "kept"),
    [(["1", "oops", "0", ""], [1, 0]), ([1.0, NAN, 0.0, float("inf")], [1, 0]), ([True, None, False], [1, 0])],
    ids=["text", "float", "bool"],
)
def test_a_label_that_cannot_be_read_costs_its_own_event(values, kept):
    raw = pl.DataFrame({"user_id": "u", "item_id": "a", "timestamp": range(T, T + len(values)), "label": values})
    events, dropped = clean(raw, pl.Series(["a"]))
    assert events["label"].to_list() == kept
    assert dropped["no_label"] == len(values) - 2


def test_context_that_is_not_finite_is_unknown():
    raw = pl.DataFrame({"user_id": "u", "item_id": "a", "timestamp": T, "hour": [3.0, NAN, float("inf"), 1e300, None]})
    assert ingest_events.canonical_events(raw, "log")["hour"].to_list() == [3, None, None, None, None]


@pytest.mark.parametrize("column", ["timestamp", "label"])
@pytest.mark.parametrize("values", [["oops", ""], [NAN, NAN], [None, None], [[1], [2]], [{"a": 1}, {"a": 2}]])
def test_a_column_in_which_nothing_can_be_read_is_named(column, values):
    raw = pl.DataFrame({"user_id": "u", "item_id": "a", "timestamp": [T, T + 1], "label": [1, 0]})
    with pytest.raises(UserError, match=f"column '{column}' that can be read"):
        ingest_events.canonical_events(raw.with_columns(pl.Series(column, values)), "log")


LOSSES = {
    "unreadable_row": f"u,a,{T},1,1",
    "no_user_id": f",a,{T},1",
    "unknown_item": f"u,nope,{T},1",
    "no_timestamp": "u,a,oops,1",
    "future_timestamp": "u,a,32503680000,1",
    "no_label": f"u,a,{T},",
    "duplicate_event": f"u,a,{T + 2},1",
}


@pytest.mark.parametrize("reason", LOSSES)
def test_a_log_that_loses_more_than_its_share_is_refused(context, tmp_path, reason):
    (tmp_path / "catalog" / "items.csv").write_text("item_id\na\n")
    log = tmp_path / "catalog" / "interactions.csv"
    log.write_text(
        "\n".join(["user_id,item_id,timestamp,label", f"u,a,{T + 2},1", f"u,a,{T + 3},1", *[LOSSES[reason]] * 2]) + "\n"
    )
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
    assert Config(max_dropped_share=0.9, max_reject_share=0.9).identity() == Config().identity()


@pytest.mark.parametrize(("rows", "says"), [("", "has no rows"), ("u,nope,1577934245\n", "0 usable of 1 events")])
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
        ('{"notes": []}', None),
        ('["order"]', None),
        ("{order", None),
        ("\xff", None),
        (None, None),
    ],
)
def test_the_meaning_of_timestamps_is_recorded_where_the_catalogue_tells_it(context, tmp_path, content, timestamps):
    (tmp_path / "catalog" / "items.csv").write_text("item_id\na\n")
    (tmp_path / "catalog" / "interactions.csv").write_text("user_id,item_id,timestamp\nu,a,1577934245\n")
    before = tables.signature(context.catalog)
    if content is not None:
        (tmp_path / "catalog" / "catalog.json").write_text(content, encoding="latin-1")
    lines: list[str] = []
    metrics = run(dataclasses.replace(context, log=lines.append)).metrics
    assert metrics.get("timestamps") == timestamps
    assert ("timestamps" in metrics) == (timestamps is not None)
    assert len([line for line in lines if "order" in line]) == (timestamps == "order")
    assert (tables.signature(context.catalog) == before) == (content is None)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"timestamps": 3}', "has timestamps '3': write one of real, order, none"),
        ('{"timestamps": "orders"}', "has timestamps 'orders'"),
        ("{'timestamps': 'order'}", "is not valid JSON"),
    ],
)
def test_what_is_meant_for_timestamps_and_says_nothing_is_told(context, tmp_path, content, told):
    (tmp_path / "catalog" / "items.csv").write_text("item_id\na\n")
    (tmp_path / "catalog" / "interactions.csv").write_text("user_id,item_id,timestamp\nu,a,1577934245\n")
    (tmp_path / "catalog" / "catalog.json").write_text(content)
    with pytest.raises(UserError, match=told):
        run(context)


def test_a_log_that_has_left_the_catalogue_leaves_the_run(context, tmp_path):
    (tmp_path / "catalog" / "items.csv").write_text("item_id\na\n")
    log = tmp_path / "catalog" / "interactions.csv"
    log.write_text("user_id,item_id,timestamp\nu,a,1577934245\n")
    run(context)
    assert (tmp_path / "run" / "log").exists()
    log.unlink()
    run(context)
    assert not (tmp_path / "run" / "log").exists()


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
    raw = pl.DataFrame({"item_id": ["1"], "attributes": [[{"genre": "noir"}]]})
    with pytest.raises(UserError, match=r"'attributes' that cannot be read .* pairs of key and value"):
        canonical_items(raw, "items")


def test_written_types_are_those_of_the_contract(context, tmp_path):
    (tmp_path / "catalog" / "items.csv").write_text("item_id\na\n")
    (tmp_path / "catalog" / "interactions.csv").write_text("user_id,item_id,timestamp,label,hour\nu,a,1577934245,1,3\n")
    run(context)
    items = {field.name: str(field.type) for field in context.run.read_table("catalog", "items").schema}
    events = {field.name: str(field.type) for field in read_log_table(context.run).schema}
    assert (items["item_id"], items["title"], items["attributes"][:18]) == ("string", "string", "map<string, string")
    assert events == {
        "user_id": "string",
        "item_id": "string",
        "timestamp": "timestamp[us, tz=UTC]",
        "label": "float",
        "hour": "float",
    }


def test_a_context_column_may_be_called_row():
    raw = pl.DataFrame({"user_id": ["u", None], "item_id": "a", "timestamp": T, "row": 7})
    assert clean(raw, pl.Series(["a"]))[0]["row"].to_list() == [7]


def test_numbers_that_identify_something_are_no_context():
    raw = pl.DataFrame(
        {"user_id": ["u"], "item_id": "a", "timestamp": T, "session_id": 7, "ID": 1, "paid": 1, "hour": 3}
    )
    raw = raw.with_columns(orderId=pl.lit(3), **{"Visit ID": pl.lit(4)})
    assert ingest_events.canonical_events(raw, "log").columns[3:] == ["hour", "paid"]


def test_numeric_columns_become_context_and_text_ones_do_not():
    raw = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [T], "hour": [3], "page": ["x"]})
    assert ingest_events.canonical_events(raw, "log").columns == ["user_id", "item_id", "timestamp", "hour"]


@pytest.mark.parametrize("label", [4.5, -1.0])
def test_ratings_are_no_labels(label):
    raw = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [T], "label": [label]})
    with pytest.raises(UserError, match=rf"labels outside 0 … 1 \(such as {label:g}\): .*positive_from"):
        ingest_events.canonical_events(raw, "log")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("items.csv", "id,title\n1,a\n", "has no column 'item_id': rename 'id'"),
        *(
            ("items.csv", f"i,{name}\n1,a\n", f"rename {name!r}")
            for name in ("Item ID", "itemId", "ITEM-ID", "Item_Id")
        ),
        ("items.csv", "item_id,title\n", "has no rows"),
        ("items.csv", "item_id,title\na,x,y\n", "has no row that can be read (line 2 has another number of fields"),
        ("items.parquet", "junk", "cannot be read"),
        ("other.csv", "a\n1\n", "has no items table"),
    ],
)
def test_unusable_catalogues_are_refused(context, tmp_path, name, content, says):
    (tmp_path / "catalog" / name).write_text(content)
    with pytest.raises(UserError) as caught:
        tables.check(context.catalog)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "items.csv",
            gzip.compress(b"item_id", mtime=0),
            "items.csv is compressed with gzip: add .gz to its name, or unpack it.",
        ),
        ("items.jsonl", b"PK\x03\x04rest", "is an Excel workbook or another ZIP archive: export its table as CSV, or"),
        (
            "items.parquet",
            b"PK\x03\x04rest",
            "is an Excel workbook or another ZIP archive: export its table as CSV, or",
        ),
        ("items.csv", pl.DataFrame({"item_id": ["a"]}), "items.csv is a Parquet file: give it the suffix .parquet."),
        ("items.parquet", b"item_id\na\n", "cannot be read as Parquet: it is text, so give it the suffix .csv."),
        ("items.parquet", b'{"item_id": 1}\n', "it is text, so give it the suffix .jsonl."),
        ("items.parquet", b"PAR1\x15 and no more", "cannot be read as Parquet: write it again."),
        ("items.parquet", b"", "cannot be read as Parquet: write it again."),
        ("ITEMS.CSV", b"item_id\na\n", "has a table ITEMS.CSV: rename it to items.csv."),
        ("items.CSV", b"item_id\na\n", "has a table items.CSV: rename it to items.csv."),
        ("Interactions.csv", b"user_id\n", "has a table Interactions.csv: rename it to interactions.csv."),
        ("items.tsv", b"item_id\na\n", "has items.tsv, which is not read: rename it to items.csv."),
        ("interactions.tsv", b"u\n", "has interactions.tsv, which is not read: rename it to interactions.csv."),
        ("interactions.json", b"{}", "rename it to interactions.jsonl, if it has one object on each line."),
        ("interactions.csv.zst", b"x", "has interactions.csv.zst, which is not read: unpack it."),
        (
            "interactions/day=2026-03-01/part-0.csv",
            b"user_id\n",
            "has a folder interactions with day=2026-03-01, which is not read: put .parquet, .csv or .jsonl files",
        ),
    ],
)
def test_files_of_another_format_or_name_are_told(context, tmp_path, name, content, says):
    if name.lower().startswith("interactions"):
        (tmp_path / "catalog" / "items.csv").write_text("item_id,title\na,x\n")
    (tmp_path / "catalog" / name).parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        (tmp_path / "catalog" / name).write_bytes(content)
    else:
        content.write_parquet(tmp_path / "catalog" / name)
    with pytest.raises(UserError) as caught:
        tables.check(context.catalog)
    assert says in str(caught.value)


def test_what_is_no_table_makes_no_log(context, tmp_path):
    catalog = tmp_path / "catalog"
    (catalog / "items.csv").write_text("item_id,title\na,x\n")
    (catalog / "interactions.txt").write_text("what the columns mean")
    (catalog / "interactions").mkdir()
    for name, content in ((".gitkeep", ""), (".DS_Store", "x"), ("_SUCCESS", ""), ("part-0.csv", "")):
        (catalog / "interactions" / name).write_text(content)
    tables.check(context.catalog)
    assert tables.find(context.catalog, "interactions") is None


def test_a_catalogue_that_is_a_file_is_told(tmp_path):
    (tmp_path / "items.csv").write_text("item_id,title\na,x\n")
    with pytest.raises(UserError, match="is a file: name the folder in which it lies"):
        tables.check(str(tmp_path / "items.csv"))


def test_ratings_become_labels_and_leave_the_context(context, tmp_path):
    (tmp_path / "catalog" / "items.csv").write_text("item_id,title\na,vase\n")
    rows = "".join(f"u,a,{T + n},{rating},7\n" for n, rating in enumerate([1, 3.5, 4, 5]))
    (tmp_path / "catalog" / "interactions.csv").write_text("user_id,item_id,timestamp,stars,hour\n" + rows)
    run(context, label="stars", positive_from=4)
    log = pl.DataFrame(read_log_table(context.run))
    assert log["label"].to_list() == [0, 0, 1, 1]
    assert log.columns == ["user_id", "item_id", "timestamp", "label", "hour"]


def test_a_rating_beside_a_label_is_no_feature(context, tmp_path):
    """It is known after the event alone: the ranker would learn the label from it, and the service has none."""
    (tmp_path / "catalog" / "items.csv").write_text("item_id,title\na,vase\n")
    rows = "".join(f"u,a,{T + n},{int(rating > 3)},{rating},7\n" for n, rating in enumerate([1, 3.5, 4, 5]))
    (tmp_path / "catalog" / "interactions.csv").write_text("user_id,item_id,timestamp,label,Rating,hour\n" + rows)
    run(context)
    assert pl.DataFrame(read_log_table(context.run)).columns == ["user_id", "item_id", "timestamp", "label", "hour"]


def test_media_that_are_named_by_ids_get_their_uris(context, tmp_path):
    (tmp_path / "catalog" / "items.csv").write_text("item_id,title\na,vase\n 7 ,lamp\n")
    run(context, media="clips/{item_id}.mp4")
    rows = context.run.read_table("catalog", "items").to_pylist()
    assert [row["media"] for row in rows] == [[{"uri": f"clips/{name}.mp4", "kind": "video"}] for name in ("a", "7")]


def write(folder: Path, log: list[str], items: str = "item_id,title\na,x\nb,y\n") -> None:
    (folder / "catalog" / "items.csv").write_text(items)
    (folder / "catalog" / "interactions.csv").write_text("\n".join(log) + "\n")


def noted(context: Context, **config) -> list[str]:
    lines: list[str] = []
    run(dataclasses.replace(context, log=lines.append), **config)
    return lines


def test_the_first_and_the_last_time_are_told(context, tmp_path):
    write(tmp_path, ["user_id,item_id,timestamp", "u,a,2024-03-04", "v,b,2023-11-14T22:13:20Z", "u,b,2024-01-01 UTC"])
    lines = noted(context)
    assert lines == ["ingest: 3 events of 2 users from 2023-11-14 22:13:20 to 2024-03-04 00:00:00 UTC"]
    log = run(context).metrics["interactions"]
    assert (log["first"], log["last"]) == ("2023-11-14T22:13:20+00:00", "2024-03-04T00:00:00+00:00")


def test_ids_that_were_floats_match_those_that_are_whole(context, tmp_path):
    pl.DataFrame({"item_id": [1.0, 2.0, NAN, None]}).write_parquet(tmp_path / "catalog" / "items.parquet")
    log = ["user_id,item_id,timestamp", f"7.0,1,{T}", f"8.0,2,{T}", f"8.0,nan,{T}", f"NULL,1,{T}"]
    (tmp_path / "catalog" / "interactions.csv").write_text("\n".join(log))
    result = run(context)
    assert (result.rows_out, result.rejected) == (2, 2)
    assert read_log_table(context.run).select(["user_id", "item_id"]).to_pylist() == [
        {"user_id": "7", "item_id": "1"},
        {"user_id": "8", "item_id": "2"},
    ]
    dropped = result.metrics["interactions"]["dropped"]
    assert (dropped["no_user_id"], dropped["unknown_item"]) == (1, 1)


def test_users_whose_ids_differ_in_a_zero_fraction_alone_are_one():
    raw = pl.DataFrame({"user_id": ["3", "3.0", "u", '="03"'], "item_id": "a", "timestamp": T})
    assert ingest_events.canonical_events(raw, "log")["user_id"].to_list() == ["3", "3", "u", "03"]


def test_ids_of_both_tables_are_shown_where_none_matches(context, tmp_path):
    log = ["user_id,item_id,timestamp", *(f"u,{item},{T}" for item in ("07", "07", "08", "09", "10"))]
    write(tmp_path, log, "item_id\n7\n8\n9\n10x\n")
    with pytest.raises(UserError, match=r"unknown_item \(such as '07', '08', '09'\): .* \('7', '8', '9'\)\.$"):
        run(context)


@pytest.mark.parametrize(
    ("stamps", "says"),
    [
        (
            ["03/04/2024", "04/04/2024"],
            r"no_timestamp \(such as '03/04/2024', '04/04/2024'\): day and month could be either",
        ),
        (["45355", "45356"], r"\(such as '45355', '45356'\): it looks like a day number of Excel"),
        (["1", "2"], r'as Unix time it would lie in 1970: .* \{"timestamps": "order"\} in catalog.json'),
        (
            ["03/04/2024", "04/04/2024", "2024-04-03"],
            r"2 dropped as no_timestamp \(such as '03/04/2024', '04/04/2024'\)",
        ),
    ],
)
def test_times_that_could_be_others_are_refused_with_what_to_write(context, tmp_path, stamps, says):
    write(tmp_path, ["user_id,item_id,timestamp", *(f"u,a,{stamp}" for stamp in stamps)])
    with pytest.raises(UserError, match=says):
        run(context)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"timestamp": "03/04/2024"}, "'timestamp' that can be read (such as '03/04/2024'): day and month could be"),
        ({"timestamp": "45355"}, "'timestamp' that can be read (such as '45355'): it looks like a day number of Excel"),
        ({"timestamp": "2024-03-04", "label": "yes"}, "no value in its column 'label' that can be read"),
    ],
)
def test_what_ingest_would_refuse_is_refused_by_the_check(context, tmp_path, columns, says, suffix):
    write(tmp_path, [])
    (tmp_path / "catalog" / "interactions.csv").unlink()
    log = pl.DataFrame({"user_id": ["u"] * 3, "item_id": "a", **columns})
    (log.write_csv if suffix == "csv" else log.write_parquet)(tmp_path / "catalog" / f"interactions.{suffix}")
    tables.check(context.catalog)
    with pytest.raises(UserError) as checked:
        stage("ingest").check_data(Config(), survey(context.catalog))
    assert says in str(checked.value)
    with pytest.raises(UserError, match=r"0 usable of 3 events, 3 dropped as no_(timestamp|label)"):
        run(context)


def test_a_sample_without_a_time_is_not_refused(context, tmp_path, monkeypatch):
    monkeypatch.setattr("workflows.catalogs.survey.SAMPLED", 9)
    write(tmp_path, [])
    (tmp_path / "catalog" / "interactions.csv").unlink()
    log = pl.DataFrame({"user_id": ["u"] * 100, "item_id": "a", "timestamp": [None] * 50 + list(range(T, T + 50))})
    log.write_parquet(tmp_path / "catalog" / "interactions.parquet", row_group_size=40)
    uri = str(tmp_path / "catalog" / "interactions.parquet")
    assert sample(uri)["timestamp"].to_list() == [None] * 6 + [T + 30, T + 31, T + 32]
    assert stage("ingest").check_data(Config(), survey(context.catalog)) == []
    write(tmp_path, ["user_id,item_id,timestamp", *(f"u,a,{T + n}" for n in range(100))])
    assert len(sample(uri.replace("parquet", "csv"))) == 10


def test_dropped_events_are_told_with_examples_the_commonest_reason_first(context, tmp_path):
    good = [f"u,{item},{T + n}" for n in range(4) for item in "ab"]
    write(tmp_path, ["user_id,item_id,timestamp", *good, "u,a,oops", f"u,c,{T}", f"u,d,{T}", "u,a"])
    assert noted(context)[1].endswith(
        "interactions 2 unknown_item (such as 'c', 'd'), 1 unreadable_row (such as 'line 13 has another number of "
        "fields (2) than the header (3)'), 1 no_timestamp (such as 'oops')"
    )


def test_labels_that_are_all_0_end_a_run_that_learns_from_them(context, tmp_path):
    write(tmp_path, ["user_id,item_id,timestamp,label", *(f"u,a,{T + n},0" for n in range(9))])
    with pytest.raises(UserError, match="Every label of the log is 0"):
        run(dataclasses.replace(context, splits=True))
    assert run(context).rows_out == 2


def test_labels_that_are_all_1_are_told(context, tmp_path):
    write(tmp_path, ["user_id,item_id,timestamp,label", *(f"u,a,{T + n},1" for n in range(9))])
    assert noted(dataclasses.replace(context, splits=True))[1] == (
        "ingest: every label is 1, which says nothing: the log is read as positives alone"
    )


def test_the_times_that_cut_the_log_are_kept_for_later_stages(context, tmp_path):
    write(tmp_path, ["user_id,item_id,timestamp", *(f"u,a,{T + n}" for n in range(20))])
    run(dataclasses.replace(context, splits=True))
    (cuts,) = Path(context.run.root).glob("log/cuts-*.json")
    assert json.loads(cuts.read_text()) == [(T + n) * 10**6 for n in (15, 17)]


def test_a_log_that_its_split_cannot_part_is_refused(context, tmp_path):
    write(tmp_path, ["user_id,item_id,timestamp", *(f"u{n},a,2024-03-04" for n in range(9)), "u1,b,2024-03-04"])
    with pytest.raises(UserError, match=r"distinct timestamps .* write split: \{kind: leave_last\}"):
        run(dataclasses.replace(context, splits=True))
    with pytest.raises(UserError, match="No user has three events"):
        run(dataclasses.replace(context, splits=True, split=SplitLeaveLast(kind="leave_last")))
    assert run(context).rows_out == 2


def test_markup_is_no_text(context, tmp_path):
    write(
        tmp_path, ["user_id,item_id,timestamp", f"u,a,{T}"], "item_id,title,description\na,I <3 A&amp;B,<p>Felt</p>\n"
    )
    run(context)
    assert context.run.read_table("catalog", "items", columns=["title", "description"]).to_pylist() == [
        {"title": "I <3 A&B", "description": "Felt"}
    ]


def test_an_index_column_is_no_context(context, tmp_path):
    write(tmp_path, [",user_id,item_id,timestamp,hour", *(f"{n},u,a,{T + n},3" for n in range(3))])
    run(context)
    assert read_log_table(context.run).column_names == ["user_id", "item_id", "timestamp", "hour"]


def test_lines_that_are_no_items_are_rejected_with_their_number(context, tmp_path):
    (tmp_path / "catalog" / "items.csv").write_text("item_id,title\na,x,y\nb,y\n\nc,z,\n")
    result = run(context)
    assert (result.rows_in, result.rows_out, result.rejected) == (3, 2, 1)
    [reject] = context.run.read_table("rejects", "ingest").to_pylist()
    assert (reject["code"], reject["detail"][:6]) == ("unreadable_row", "line 2")


@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_ids_that_are_lists_are_refused(column):
    raw = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [T]}).with_columns(pl.concat_list(column))
    with pytest.raises(UserError, match=rf"log has a column '{column}' that cannot be read .* text or whole numbers"):
        ingest_events.canonical_events(raw, "log")


@pytest.mark.parametrize("items", ["1.0 1.5 2.0", "1 1.5 2", "1.0 2.0 3.0", "1 2 x", "1.0 2.0 x"])
@pytest.mark.parametrize("log", ["1.0 2.0", "1 2", "1.0 2"])
def test_ids_that_differ_in_a_zero_fraction_alone_match(context, tmp_path, items, log):
    rows = [f"u,{item},{T + n}" for n, item in enumerate(log.split())]
    write(tmp_path, ["user_id,item_id,timestamp", *rows], "item_id\n" + "\n".join(items.split()) + "\n")
    run(context)
    known = context.run.read_table("catalog", "items")["item_id"].to_pylist()
    found = read_log_table(context.run)["item_id"].to_pylist()
    assert [float(item) for item in found] == [1, 2]
    assert set(found) <= set(known)


def test_ids_that_are_both_there_are_told_apart(context, tmp_path):
    log = ["user_id,item_id,timestamp", f"u,1.0,{T}", f"u,2.0,{T + 1}", f"u,1,{T + 2}"]
    write(tmp_path, log, "item_id\n1\n1.0\n2\n")
    run(context)
    assert read_log_table(context.run)["item_id"].to_pylist() == ["1.0", "2", "1"]


@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_ids_of_bytes_are_refused_in_words_of_the_table(column: str) -> None:
    raw = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [T]}).with_columns(
        pl.lit(b"\xff").alias(column)
    )
    with pytest.raises(
        UserError, match=f"'{column}' that cannot be read \\(type Binary\\): write text or whole numbers"
    ):
        ingest_events.canonical_events(raw, "log")
    if column == "item_id":
        with pytest.raises(UserError, match="type Binary"):
            canonical_items(raw, "items")
