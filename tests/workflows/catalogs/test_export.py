"""`tesserec export`: what it writes, by a plain reference; what it leaves out; killed, and what it refuses."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.stores.base import DELETED, HIDDEN, SHOWN, Event, Impression, Item
from serving.stores.opening import open_store
from storage import files, tables
from storage.errors import UserError
from storage.manifest import Manifest, StageEntry, write_manifest
from storage.media.limits import Limits
from storage.media.sources import Sources, read_limited, resolve
from storage.run import RunDir
from tests.conftest import REPOSITORY
from tests.logs import write_log
from tests.s3 import Server
from tests.stores import emptied
from workflows.catalogs import export as module
from workflows.catalogs.canonical import ITEMS
from workflows.catalogs.export import export
from workflows.engine.registry import stage
from workflows.load import load_users
from workflows.stages.features import stage as features
from workflows.stages.ingest.settings import Config

MINUTE = 60_000_000
START = 1_767_225_600_000_000  # of 2026
END, NOW = START + 100 * MINUTE, START + 200 * MINUTE  # of the run's log, and of the export
Tesserec = Callable[..., tuple[int, str, str]]
Row = tuple[Any, ...]  # user, item, time, label, propensity, kind, recommendation_id, hour
KILLED = """
import os, signal, sys
import workflows.catalogs.export as module
move, left = module._move, [int(sys.argv[5])]
def dying(*arguments):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    move(*arguments)
module._move = dying
module.export(*sys.argv[1:4], 30, sys.argv[4], lambda done, total: None)
"""
OWN = [
    ("u", "a", START, 1.0, 0.5),
    ("u", "b", START + MINUTE, 0.0, None),
    ("v", "rejected", START + 50 * MINUTE, 1.0, 1.5),
    ("é", "a", END - MINUTE, 0.0, 2.5),
    ("é", "b", END, 1.0, 3.5),
]


def write(folder: Path, own: list[Row] = OWN, *, labels: bool = True) -> RunDir:
    """A run of three items, of which one was rejected later, and a log in two partitions."""
    run, catalog = RunDir(str(folder / "run")), folder / "catalog"
    (catalog / "media").mkdir(parents=True)
    (catalog / "media" / "a?b.jpg").write_bytes(b"picture")
    media = [[{"uri": "media/a?b.jpg", "kind": "image"}], [{"uri": "https://host/b.jpg", "kind": "image"}], None]
    items = [["a", "b", "rejected"], ["A", None, "R"], [None] * 3, media, [[("colour", "red")], [], None]]
    run.write_table(pa.table(items, schema=ITEMS), "catalog", "items")
    run.write_table(pa.table({"item_id": ["a", "b"], "embedding": [[1.0], [2.0]]}), "embeddings")
    names = ["user_id", "item_id", "timestamp", "label", "hour"]
    log = pl.DataFrame(own, names, orient="row").with_columns(pl.col("timestamp").cast(pl.Datetime("us", "UTC")))
    write_log(run, (log if labels else log.drop("label")).to_arrow(), partitions=2)
    finish(run)
    (folder / "run" / "workflow.yaml").write_text(
        yaml.safe_dump({"name": "tiny", "catalog": str(catalog), "stages": {"ingest": None}})
    )
    return run


def finish(run: RunDir, state: str = "complete", **metrics: str) -> None:
    stages = {
        "ingest": StageEntry(state="complete", metrics=metrics),
        "features": StageEntry(state=state, fingerprint="f"),  # type: ignore[arg-type]
    }
    write_manifest(run.root, Manifest(name="tiny", stages=stages))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return write(tmp_path_factory.mktemp("run"))


def catalog_of(run: RunDir) -> str:
    return str(Path(run.root).parent / "catalog")


def event(user: str, number: int, item: str, minutes: float, weight: float = 1.0, kept: int = 0) -> Event:
    time = START + round(minutes * MINUTE)
    return Event(user, f"e{number}", item, "buy" if weight else "view", weight, time, "r", kept)


def answer(user: str | None, number: int, minutes: float, *items: str) -> Impression:
    chances = [0.5**place for place in range(len(items))]
    time = START + round(minutes * MINUTE)
    return Impression(user, f"r{number}", time, "run:1", "/v1/recommend", list(items), chances, [["x"]] * 9, chances)


def fill(uri: str, events: list[Event], answers: list[Impression], gone: dict[str, int] | None = None) -> None:
    if uri.startswith("sqlite:"):
        for end in ("", "-wal", "-shm"):
            Path(f"{uri.removeprefix('sqlite:')}{end}").unlink(missing_ok=True)
    else:
        emptied(uri)
    with closing(open_store(uri, create=True)) as store:
        for user, time in (gone or {}).items():
            store.forget(user, time)
        store.add(events)
        store.show(answers)


def exported(run: RunDir, uri: str, target: Path, minutes: float = 30, rows: int = 4) -> list[Row]:
    """Exports as of `NOW` in pieces of some rows; returns the rows of the log."""
    with (
        patch.object(module, "ROWS", rows),
        patch.object(module, "time", SimpleNamespace(time_ns=lambda: NOW * 1_000)),
    ):
        export(run.root, uri, str(target), minutes, catalog_of(run), lambda done, total: None)
    if not (target / "interactions").exists():
        return []
    parts = [pl.read_parquet(part) for part in sorted((target / "interactions").iterdir())]
    assert all(part.height for part in parts)
    assert all(part.schema == parts[0].schema for part in parts)
    columns = ["user_id", "item_id", "timestamp", "label", "propensity", "kind", "recommendation_id", "hour"]
    table = pl.concat(parts)
    assert sorted(table.columns) == sorted(columns)
    return table.select(columns).with_columns(pl.col("timestamp").dt.epoch("us")).rows()


def expected(
    own: list[Row], events: list[Event], answers: list[Impression], gone: dict[str, int], minutes: float = 30
) -> list[Row]:
    """What `export` should write, row by row."""

    def kept(user: str, time: int) -> bool:
        return user not in gone or time > gone[user]

    rows = [(user, item, time, label, None, None, None, hour) for user, item, time, label, hour in own]
    acts = {(each.user_id, each.event_id): each for each in reversed(events) if kept(each.user_id, each.time)}.values()
    for each in acts:
        if max(each.time, each.kept) > END and each.time <= NOW - minutes * MINUTE:
            label = float(each.weight > 0)
            rows.append((each.user_id, each.item_id, each.time, label, None, each.kind, each.recommendation_id, None))
    for shown in answers:
        if shown.user_id is None or not END < shown.time <= NOW - minutes * MINUTE:
            continue
        for item, chance in zip(shown.items, shown.propensities, strict=True):
            answered = any(
                (each.user_id, each.item_id) == (shown.user_id, item)
                and each.weight
                and 0 <= each.time - shown.time <= minutes * MINUTE
                for each in acts
            )
            if not answered:
                row = (shown.user_id, item, shown.time, 0.0, chance, "impression", shown.recommendation_id, None)
                rows.append(row)
    return [row for row in rows if kept(row[0], row[2])]


def ordered(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=repr)


USERS = st.sampled_from(["u", "v", "é", "w"])
MINUTES = st.integers(80, 210)
SOME = st.sampled_from(["a", "b", "new"])
KEPT = st.sampled_from([0, END, END + 1])
ACTS = st.builds(event, USERS, st.integers(0, 9), SOME, MINUTES, st.sampled_from([0, 1, -1]), KEPT)
ANSWERS = st.builds(
    lambda user, number, minutes, items: answer(user, number, minutes, *items),
    st.none() | USERS,
    st.integers(0, 5),
    MINUTES,
    st.lists(SOME, max_size=3, unique=True),
)
GONE = st.dictionaries(USERS, MINUTES.map(lambda minutes: START + minutes * MINUTE), max_size=3)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(ACTS, max_size=8),
    st.lists(ANSWERS, max_size=6, unique_by=lambda each: each[:2]),
    GONE,
    st.sampled_from([0, 10, 30]),
)
def test_it_writes_what_the_reference_says(
    run: RunDir,
    store_uri: str,
    tmp_path_factory: pytest.TempPathFactory,
    events: list[Event],
    answers: list[Impression],
    gone: dict[str, int],
    minutes: int,
) -> None:
    fill(store_uri, events, answers, gone)
    rows = exported(run, store_uri, tmp_path_factory.mktemp("out"), minutes)
    assert ordered(rows) == ordered(expected(OWN, events, answers, gone, minutes))


def test_what_is_kept_and_judged(run: RunDir, tmp_path: Path) -> None:
    """The cases that matter, by hand."""
    events = [
        event("u", 0, "a", 99),  # the log has it, or should
        event("u", 1, "a", 130.5),  # the last moment that answers r0
        event("u", 2, "b", 110, 0),  # a view answers nothing
        event("v", 3, "b", 121, -1),  # a dislike answers
        event("w", 4, "new", 210),  # to come
        event("w", 5, "a", 171),  # it answers, and is left for the next export
        event("w", 6, "b", 90, kept=END + MINUTE),  # it came late
    ]
    answers = [
        answer("u", 0, 100.5, "a", "b"),
        answer("v", 1, 120, "b", "a"),
        answer(None, 2, 120, "a"),
        answer("w", 3, 171, "a"),  # not judged yet
        answer("w", 4, 150, "a"),
    ]
    fill(uri := f"sqlite:{tmp_path}/s.db", events, answers)
    rows = exported(run, uri, tmp_path / "out")[len(OWN) :]
    assert ordered([(user, item, (time - START) / MINUTE, *rest) for user, item, time, *rest in rows]) == ordered(
        [
            ("u", "a", 130.5, 1.0, None, "buy", "r", None),
            ("u", "b", 110.0, 0.0, None, "view", "r", None),
            ("v", "b", 121.0, 0.0, None, "buy", "r", None),
            ("w", "b", 90.0, 1.0, None, "buy", "r", None),
            ("u", "b", 100.5, 0.0, 0.5, "impression", "r0", None),
            ("v", "a", 120.0, 0.0, 0.5, "impression", "r1", None),
        ]
    )


def test_who_was_erased_is_nowhere(tmp_path: Path, store_uri: str) -> None:
    own = [*OWN, ("erased-user", "a", START, 1.0, 0.5), ("back-again", "a", START, 1.0, 0.5)]
    run = write(tmp_path, own)
    gone = {"erased-user": END + MINUTE, "back-again": END + MINUTE}
    events = [event(user, 1, "a", minutes) for user, minutes in (("erased-user", 100.5), ("back-again", 150))]
    fill(store_uri, events, [answer("erased-user", 1, 100.5, "a")], gone)
    rows = exported(run, store_uri, tmp_path / "out")
    assert [row[:3] for row in rows if row[0] == "back-again"] == [("back-again", "a", START + 150 * MINUTE)]
    assert {row[0] for row in rows} == {"u", "v", "é", "back-again"}
    for file in (tmp_path / "out").rglob("*"):
        if file.is_file():
            assert b"erased-user" not in file.read_bytes()
        if file.suffix == ".parquet":
            assert "erased-user" not in str(pl.read_parquet(file).to_dicts())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == ["out"]


def test_nobody_is_left(tmp_path: Path) -> None:
    run = write(tmp_path)
    fill(uri := f"sqlite:{tmp_path}/s.db", [], [], dict.fromkeys(("u", "v", "é"), END))
    assert exported(run, uri, tmp_path / "out") == []
    assert tables.timestamps(str(tmp_path / "out")) == "none"
    tables.check(str(tmp_path / "out"))


def test_a_log_without_labels_is_of_likes(tmp_path: Path) -> None:
    run = write(tmp_path, labels=False)
    fill(uri := f"sqlite:{tmp_path}/s.db", [], [answer("u", 1, 120, "a")])
    assert sorted(row[3] for row in exported(run, uri, tmp_path / "out")) == [0.0] + [1.0] * len(OWN)


def test_items_stay_as_they_are_and_media_where_they_lie(run: RunDir, tmp_path: Path, tesserec: Tesserec) -> None:
    fill(uri := f"sqlite:{tmp_path}/s.db", [], [])
    status, out, told = tesserec("export", run.root, "--store", uri, "-o", f"{tmp_path}/out")
    assert status == 0, told
    assert out == f"{tmp_path}/out: 3 items and {len(OWN)} interactions; catalog.json there describes them.\n"
    assert f"media stay in {catalog_of(run)}: name it in stages.interpret.fetch.roots" in told
    items, before = files.read_table(f"{tmp_path}/out/items.parquet"), run.read_table("catalog", "items")
    assert items.drop_columns("media").equals(before.drop_columns("media"))
    picture, other, none = items["media"].to_pylist()
    assert (other, none) == tuple(before["media"].to_pylist()[1:])
    where = resolve(picture[0]["uri"], f"{tmp_path}/out", Sources(roots=(catalog_of(run),)))
    assert read_limited(where, Limits()) == b"picture"


def posted(time: float = 0) -> dict[str, Any]:
    """What is kept of an item that was sent at a time, seconds."""
    texts = {"title": None, "description": "D", "attributes": {"colour": ["red", "blue"]}}
    return {**texts, "time": time, "made": {"models": ["C", ["interest"], [1, 2], 1]}}


@pytest.mark.parametrize("first", [None, END])
def test_posted_items_that_were_changed_since_the_runs_own_export_come_from_the_store(
    tmp_path: Path, first: int | None
) -> None:
    run, uri = write(tmp_path), f"sqlite:{tmp_path}/s.db"
    if first is not None:
        files.write_json(f"{catalog_of(run)}/catalog.json", {"exported": first})
    with closing(open_store(uri, create=True)) as store:
        for version, (item_id, minutes) in enumerate((("a", 99), ("b", 101))):
            about = posted((START + minutes * MINUTE) / 1e6)
            assert store.keep_item(Item(item_id, SHOWN, about, np.ones(1, np.float32)), version=version, picture=b"new")
    exported(run, uri, tmp_path / "out")
    items = {row.pop("item_id"): row for row in files.read_table(f"{tmp_path}/out/items.parquet").to_pylist()}
    assert items.keys() == {"a", "b", "rejected"}
    assert items["a"]["description"] is None
    assert items["b"]["description"] == (None if first is None else "D")
    picture = items["b"]["media"][0]["uri"]
    assert picture.startswith("https:" if first is None else "media/")
    assert files.read_json(f"{tmp_path}/out/catalog.json")["exported"] == NOW


def test_posted_items_come_and_deleted_ones_do_not(run: RunDir, tmp_path: Path) -> None:
    about, vector, none = posted(), np.ones(1, np.float32), np.empty(0, np.float32)
    with closing(open_store(uri := f"sqlite:{tmp_path}/s.db", create=True)) as store:
        for version, item in enumerate(
            [
                Item("new/1", SHOWN, about, vector),
                Item("text", HIDDEN, {**about, "title": "T", "attributes": {}}, vector),
                Item("gone", DELETED, {}, none),
                Item("b", DELETED, {}, none),
                Item("a", HIDDEN, about, vector),  # posted before the run, which has it
            ]
        ):
            assert store.keep_item(item, version=version, picture=b"new" if item.item_id == "new/1" else None)
        store.add([event("u", 1, "new/1", 150)])
    rows = exported(run, uri, tmp_path / "out")
    assert [row[1] for row in rows if row[5] == "buy"] == ["new/1"]
    items = files.read_table(f"{tmp_path}/out/items.parquet").to_pylist()
    assert [item["item_id"] for item in items] == ["a", "rejected", "new/1", "text"]
    new, text = items[2:]
    assert {name: new[name] for name in ("title", "description", "attributes")} == {
        "title": None,
        "description": "D",
        "attributes": [("colour", "red"), ("colour", "blue")],
    }
    assert (text["title"], text["media"]) == ("T", [])
    assert read_limited(resolve(new["media"][0]["uri"], f"{tmp_path}/out", Sources()), Limits()) == b"new"


def test_a_killed_export_leaves_no_catalogue_and_is_done_anew(run: RunDir, tmp_path: Path) -> None:
    fill(uri := f"sqlite:{tmp_path}/s.db", [event("u", 1, "a", 150)], [])
    with closing(open_store(uri)) as store:
        store.keep_item(Item("new", SHOWN, posted(), np.ones(1, np.float32)), version=0, picture=b"new")
    target = tmp_path / "out"
    for moves in range(3):
        command = [sys.executable, "-c", KILLED, run.root, uri, str(target), catalog_of(run), str(moves)]
        assert subprocess.run(command, cwd=REPOSITORY).returncode == -signal.SIGKILL
        there = {path.name for path in target.iterdir()}
        assert there == {"catalog.json", *["interactions", "media"][:moves]}
        with pytest.raises(UserError, match="has no items table"):
            tables.check(str(target))
    (target / "mine").write_text("")
    with pytest.raises(UserError, match="is not empty"):
        exported(run, uri, target)
    (target / "mine").unlink()
    assert len(exported(run, uri, target)) == len(OWN) + 1
    tables.check(str(target))
    with pytest.raises(UserError, match="is not empty"):
        exported(run, uri, target)


def test_an_export_to_an_object_store_is_whole_and_leaves_nothing_else(run: RunDir, tmp_path: Path, s3: Server) -> None:
    fill(uri := f"sqlite:{tmp_path}/s.db", [event("u", 1, "a", 150)], [])
    target = f"{s3.bucket('exported')}/out"
    for number in range(2):  # the second one meets what a killed one has left
        export(run.root, uri, target, 30, catalog_of(run), lambda done, total: None)
        tables.check(target)
        assert files.dataset(f"{target}/interactions").count_rows() == len(OWN) + 1
        fs, path = files.filesystem(target)
        assert fs.ls("exported", detail=False) == [path]
        if number == 0:
            files.remove(f"{target}/items.parquet")


def test_pictures_without_a_catalogue_are_no_unfinished_export(run: RunDir, tmp_path: Path) -> None:
    fill(uri := f"sqlite:{tmp_path}/s.db", [], [])
    (tmp_path / "mine" / "media").mkdir(parents=True)
    with pytest.raises(UserError, match="is not empty"):
        exported(run, uri, tmp_path / "mine")
    assert (tmp_path / "mine" / "media").exists()


def test_what_cannot_be_exported(run: RunDir, tmp_path: Path, tesserec: Tesserec) -> None:
    fill(good := f"sqlite:{tmp_path}/s.db", [], [])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    new = str(tmp_path / "new")
    for arguments, sentence in (
        ((f"{tmp_path}/none", "--store", good, "-o", new), "There is no run at"),
        ((run.root, "--store", f"sqlite:{tmp_path}/typo.db", "-o", new), "There is no store at"),
        ((run.root, "--store", good, "-o", str(tmp_path / "full")), "is not empty: name a new directory"),
        ((run.root, "--store", good, "-o", new, "--minutes", "-1"), "--minutes"),
    ):
        status, _, told = tesserec("export", *arguments)
        assert status == 2
        assert sentence in told
        assert len(told.splitlines()) == 1, told
    finish(run, state="interrupted")
    status, _, told = tesserec("export", run.root, "--store", good, "-o", new)
    finish(run)
    assert status == 2
    assert "cannot be exported yet, its stage features is interrupted" in told
    assert [path.name for path in tmp_path.iterdir() if "new" in path.name] == []


@pytest.mark.long
def test_a_run_of_the_export_has_the_histories_of_the_store(tmp_path: Path) -> None:
    from tests.workflows.stages.test_ranking import write_run

    context = write_run(tmp_path, partitions=3)
    stage("features").run(features.Config(history=5), context)
    finish(context.run, timestamps="order")
    uri, again = f"sqlite:{tmp_path}/s.db", f"sqlite:{tmp_path}/again.db"
    load_users(context.run.root, uri, 1_000, lambda done, total: None)
    random = np.random.default_rng(0)
    users = [f"u{number}" for number in range(60)] + ["new 1", "new 2"]
    events = [
        event(user, number, f"i{item}", 101 + number / 10, float(weight))
        for number, (user, item, weight) in enumerate(
            zip(random.choice(users, 400), random.integers(0, 40, 400), random.integers(-1, 2, 400), strict=True)
        )
    ]
    answers = [
        answer(str(user), number, 101.05 + number / 10, *(f"i{item}" for item in random.permutation(40)[:10]))
        for number, user in enumerate(random.choice(users, 50))
    ]
    with closing(open_store(uri)) as store:
        store.add(events)
        store.show(answers)
    export(context.run.root, uri, str(tmp_path / "out"), 30, context.catalog, lambda done, total: None)
    new = replace(context, run=RunDir(str(tmp_path / "second")), catalog=str(tmp_path / "out"))
    tables.check(new.catalog)
    stage("ingest").run(Config(partition_events=1_000), new)
    for name in ("items", "embeddings", "sids"):
        files.copy(context.run.uri(name), new.run.uri(name))
    stage("features").run(features.Config(history=5), new)
    finish(new.run)
    load_users(new.run.root, again, 1_000, lambda done, total: None)
    vain = pl.read_parquet(tmp_path / "out" / "interactions").filter(kind="impression")["user_id"].to_list()
    assert 100 < len(vain) < 500
    with closing(open_store(uri)) as one, closing(open_store(again)) as other:
        assert other.count() == one.count()
        for user, had, has in zip(users, one.read(users), other.read(users), strict=True):
            assert had is not None
            assert has is not None
            assert np.array_equal(had.items, has.items)
            assert np.array_equal(had.times, has.times)
            assert has.events == had.events + vain.count(user)
