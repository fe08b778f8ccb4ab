"""Tables of many files, formats and sizes come out as one, in any number of pieces."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from operators.log.partitions import read_about
from storage import blocks, tables
from storage.errors import UserError
from storage.run import RunDir
from tests.logs import read_log_table
from workflows.catalogs.survey import survey
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.stages.ingest import pieces
from workflows.stages.ingest.settings import Config

T = 1_577_934_245
ITEMS, EVENTS = 60, 300


def given() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Items of which two have the id of another, and a log with events of each kind that is dropped."""
    random = np.random.default_rng(0)
    ids = [f"i{n % (ITEMS - 2)}" for n in range(ITEMS)]
    items = pl.DataFrame({"item_id": ids, "title": [f'title "{n}", of\n{n} é' for n in range(ITEMS)]})
    log = {
        "user_id": [f"u{n}" for n in random.integers(0, 40, EVENTS)],
        "item_id": [f"i{n}" for n in random.integers(0, ITEMS + 2, EVENTS)],
        "timestamp": random.integers(T, T + 500, EVENTS),
        "label": random.integers(0, 2, EVENTS).astype(float),
        "hour": random.integers(0, 3, EVENTS) / 2,
    }
    table = pl.DataFrame(log).with_columns(pl.when(pl.int_range(pl.len()) % 50 != 7).then("user_id").alias("user_id"))
    return items, pl.concat([table, table.head(20)])


def one_csv(folder: Path, name: str, table: pl.DataFrame) -> None:
    table.write_csv(folder / f"{name}.csv")


def csv_gz(folder: Path, name: str, table: pl.DataFrame) -> None:
    (folder / f"{name}.csv.gz").write_bytes(gzip.compress(table.write_csv(separator=";").replace(".5", ",5").encode()))


def one_jsonl(folder: Path, name: str, table: pl.DataFrame) -> None:
    table.write_ndjson(folder / f"{name}.jsonl")


def jsonl_gz(folder: Path, name: str, table: pl.DataFrame) -> None:
    (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(table.write_ndjson().encode()))


def row_groups(folder: Path, name: str, table: pl.DataFrame) -> None:
    table.write_parquet(folder / f"{name}.parquet", row_group_size=40)


def folder_of(suffix: str) -> Callable[[Path, str, pl.DataFrame], None]:
    def write(folder: Path, name: str, table: pl.DataFrame) -> None:
        inside = folder / (f"{name}.parquet" if suffix == "parquet" else name)
        inside.mkdir()
        (inside / "_SUCCESS").touch()
        (inside / ".part-0.crc").write_bytes(b"x")
        third = table.height // 3
        for n, start in enumerate((0, third, 2 * third)):
            part = table[start : start + third] if n < 2 else table[start:]
            if suffix == "csv" and n == 1:
                part = part.select(reversed(part.columns))  # each file has its own header
            (part.write_csv if suffix == "csv" else part.write_parquet)(inside / f"part-{n}.{suffix}")

    return write


FORMS = {
    "csv": one_csv,
    "csv.gz": csv_gz,
    "jsonl": one_jsonl,
    "jsonl.gz": jsonl_gz,
    "row groups": row_groups,
    "folder of parquet": folder_of("parquet"),
    "folder of csv": folder_of("csv"),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and sources of a few rows."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2000)
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 60)
    monkeypatch.setattr(blocks, "SOURCE_ROWS", 50)
    monkeypatch.setattr(pieces, "FLUSHED", 90)


def written(folder: Path, form: str) -> Context:
    catalog = folder / "catalog"
    catalog.mkdir()
    for name, table in zip(("items", "interactions"), given(), strict=True):
        FORMS[form](catalog, name, table)
    return Context(
        run=RunDir(str(folder / "run")),
        catalog=str(catalog),
        seed=0,
        fingerprint="f",
        log=lambda line: None,
        progress=lambda done, total: None,
        splits=True,
    )


def result(context: Context, partition_events: int = 1_000_000) -> tuple[pa.Table, pa.Table, list[str], dict[str, int]]:
    """Returns the log, the items, what was rejected, and what was dropped."""
    tables.check(context.catalog)
    found = stage("ingest").run(Config(partition_events=partition_events), context)
    rejects = sorted(row["code"] for row in context.run.read_table("rejects", "ingest").to_pylist())
    assert (found.rows_in, found.rows_out, found.rejected) == (ITEMS, ITEMS - 2, 2)
    log = read_log_table(context.run).sort_by(
        [(name, "ascending") for name in ("timestamp", "user_id", "item_id", "label")]
    )
    return log, context.run.read_table("catalog", "items"), rejects, found.metrics["interactions"]["dropped"]


def same(one: tuple[pa.Table, ...], other: tuple[pa.Table, ...]) -> bool:
    return all(a.equals(b) if isinstance(a, pa.Table) else a == b for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[pa.Table, ...]:
    return result(written(tmp_path_factory.mktemp("whole"), "csv"))


@pytest.mark.parametrize(("form", "number"), [*((form, 2) for form in FORMS), ("row groups", 1), ("row groups", 7)])
def test_a_catalogue_comes_out_the_same_in_every_form_and_number_of_pieces(
    tmp_path: Path, form: str, number: int, expected: tuple[pa.Table, ...], small: None
) -> None:
    context = written(tmp_path, form)
    counted = survey(context.catalog)
    assert (counted.items, counted.events, counted.unnamed) == (ITEMS, EVENTS + 20, 2)
    exact = form in ("row groups", "folder of parquet")
    found = result(context, -(-320 // number) if exact else 60)
    about = read_about(context.run)
    assert about is not None
    assert about.partitions == number if exact else about.partitions > 1
    assert same(found, expected)


@pytest.mark.parametrize("work", ["read_items", "index_items", "deal_events", "write_log_part", "write_items"])
def test_a_run_that_was_killed_goes_on_where_it_was(
    tmp_path: Path, work: str, expected: tuple[pa.Table, ...], small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = written(tmp_path, "row groups")
    (tmp_path / "run" / "log").mkdir(parents=True)
    (tmp_path / "run" / "log" / "cuts-of-another-state.json").touch()
    done, real = list[int](), getattr(pieces, work)

    def killed(*arguments: object) -> object:
        if len(done) == (0 if work == "index_items" else 1):
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments)

    monkeypatch.setattr(pieces, work, killed)
    with pytest.raises(KeyboardInterrupt):
        result(context, 160)
    assert not (tmp_path / "run" / "log" / "cuts-of-another-state.json").exists()
    calls = list[tuple[object, ...]]()

    def noted(*arguments: object) -> object:
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(pieces, work, noted)
    if work != "read_items":
        monkeypatch.setattr(pieces, "read_items", lambda *_: pytest.fail("nothing of it is left to do"))
    found = result(context, 160)
    assert 0 not in [arguments[-1] for arguments in calls] or work == "index_items"
    assert same(found, expected)


def test_what_another_attempt_wrote_is_removed(tmp_path: Path, small: None) -> None:
    context = written(tmp_path, "row groups")
    result(context, 160)
    result(dataclasses.replace(context, fingerprint="g"), 10_000)
    assert len(list((tmp_path / "run" / "log" / "events").iterdir())) == 1


def test_a_first_file_with_a_header_alone_decides_nothing(tmp_path: Path, expected: tuple[pa.Table, ...]) -> None:
    context = written(tmp_path, "folder of csv")
    for name, table in zip(("items", "interactions"), given(), strict=True):
        table.head(0).write_csv(Path(context.catalog) / name / "part-.csv")
    assert same(result(context), expected)
    about = read_about(context.run)
    assert about is not None
    assert about.partitions == 1


def test_two_items_of_one_hash_are_told(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    context = written(tmp_path, "folder of csv")
    monkeypatch.setattr(
        pieces, "hash_ids", lambda ids: np.array([7 if one in ("i1", "i50") else hash(one) | 1 for one in ids])
    )
    with pytest.raises(UserError, match=r"The items 'i1' and 'i50' have the same hash: rename one of them\."):
        result(context)


def test_rows_of_a_folder_are_told_with_their_file(tmp_path: Path) -> None:
    context = written(tmp_path, "folder of csv")
    result(context)
    details = [row["detail"] for row in context.run.read_table("rejects", "ingest").to_pylist()]
    assert details == ["row 19 of part-2.csv", "row 20 of part-2.csv"]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (
            ["items/a.csv", "items/b.parquet"],
            r"items holds files of several formats \(.*a.csv, .*b.parquet\): keep those of one",
        ),
        (["items.parquet/readme.txt"], r"items.parquet is a folder without a file that ends in \.parquet, "),
        (["items.csv", "items.csv.gz"], "holds items in 2 formats: keep one of"),
        (["items/a.jpg"], "has no items table"),
        (["items.csv.gz"], "items.csv.gz cannot be unpacked by gzip: compress it again, or remove .gz from its name"),
    ],
)
def test_tables_that_are_not_one_are_told(tmp_path: Path, names: list[str], says: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("item_id\na\n")
    with pytest.raises(UserError, match=says):
        tables.check(str(tmp_path))


def test_files_of_a_table_have_the_same_columns(tmp_path: Path) -> None:
    (tmp_path / "items").mkdir()
    (tmp_path / "items" / "0.csv").write_text("item_id,title\na,x\n")
    (tmp_path / "items" / "1.csv").write_text("item_id;name\nb;x\n")
    with pytest.raises(
        UserError, match=r"1.csv has other columns than .*0.csv: write all files of a table with the same"
    ):
        tables.check(str(tmp_path))


def test_pictures_beside_a_table_are_no_table(tmp_path: Path) -> None:
    (tmp_path / "items").mkdir()
    (tmp_path / "items" / "a.jpg").touch()
    (tmp_path / "items.csv").write_text("item_id,title\na,x\n")
    tables.check(str(tmp_path))
    assert tables.find(str(tmp_path), "items") == str(tmp_path / "items.csv")


def test_a_changed_file_of_a_folder_changes_the_signature(tmp_path: Path) -> None:
    folder_of("csv")(tmp_path, "items", given()[0])
    before = tables.signature(str(tmp_path))
    (tmp_path / "items" / "part-1.csv").write_text("item_id,title\nz,x\n")
    assert tables.signature(str(tmp_path)) != before


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize(
    ("table", "column", "value"),
    [("interactions", "label", 1.0), ("interactions", "hour", 2), ("items", "caption", "a cup")],
)
def test_a_column_that_only_later_rows_have_is_refused(
    tmp_path: Path, table: str, column: str, value: object, folder: bool, small: None
) -> None:
    context = written(tmp_path, "jsonl")
    rows = dict(zip(("items", "interactions"), given(), strict=True))[table].drop(column, strict=False)
    lines = [json.dumps(row) for row in rows.to_dicts()]
    late = json.dumps({**rows.row(0, named=True), "item_id": f"{table} late", column: value})
    path = Path(context.catalog) / f"{table}.jsonl"
    if folder:
        path.unlink()
        path = path.with_suffix("")
        path.mkdir()
        (path / "part-0.jsonl").write_text("\n".join(lines))
        path, lines = path / "part-1.jsonl", []
    path.write_text("\n".join([*lines, late]))
    with pytest.raises(UserError, match=f"{path}.* {column!r} .*write it there"):
        stage("ingest").run(Config(), context)


@pytest.mark.parametrize(
    ("column", "value", "read"), [("dwell", "3", True), ("dwell", "1,5", True), ("place", "a", False)]
)
def test_a_column_of_csv_whose_first_numbers_come_late_is_refused(
    tmp_path: Path, column: str, value: str, read: bool, small: None
) -> None:
    context = written(tmp_path, "csv")
    path = Path(context.catalog) / "interactions.csv"
    log = pl.read_csv(path).with_columns(pl.lit(None, pl.String).alias(column))
    late = pl.concat([log[:-1], log[-1:].with_columns(pl.lit(value).alias(column))])
    late.write_csv(path, separator=";")
    if not read:
        stage("ingest").run(Config(), context)
        return
    with pytest.raises(UserError, match=f"{path}.* {column!r} .*write it there"):
        stage("ingest").run(Config(), context)


@pytest.mark.parametrize(("table", "column"), [("interactions", "label"), ("items", "caption"), ("items", "embedding")])
def test_a_column_without_a_value_may_come_late(tmp_path: Path, table: str, column: str, small: None) -> None:
    context = written(tmp_path, "jsonl")
    rows = dict(zip(("items", "interactions"), given(), strict=True))[table].drop(column, strict=False).to_dicts()
    rows[-1] |= {column: None}
    (Path(context.catalog) / f"{table}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stage("ingest").run(Config(), context)
    found = context.run.read_table("catalog", "items") if table == "items" else read_log_table(context.run)
    assert column not in found.column_names


def test_a_column_may_be_missing_and_empty_in_later_rows(tmp_path: Path, small: None) -> None:
    context = written(tmp_path, "jsonl")
    path = Path(context.catalog) / "interactions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    late = [{name: row[name] for name in ("user_id", "item_id", "timestamp", "label")} | {"new": None} for row in rows]
    path.write_text("\n".join(map(json.dumps, [*rows[:160], *late[160:]])))
    stage("ingest").run(Config(), context)
    assert read_log_table(context.run)["hour"].null_count > 50
