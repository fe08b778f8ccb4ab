"""What of the log of the run before is not read again where `tesserec export` wrote the catalogue."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from operators.log.partitions import read_about
from serving.stores.base import Event
from serving.stores.opening import open_store
from storage.manifest import Manifest, StageEntry, write_manifest
from storage.run import RunDir
from tests.logs import read_log_table
from workflows.catalogs.export import export
from workflows.engine.definition import resolve
from workflows.engine.preflight import preflight
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.stages.ingest import pieces
from workflows.stages.ingest.settings import Config

START = 1_767_225_600_000_000  # of 2026
BEGUN_S, RATINGS = 1_700_000_000, 40
END = START + 300_000_000  # of the log
LIKE = Event("u1", "e", "i1", "like", 1.0, END + 60_000_000)


def ingested(root: Path, catalog: Path, previous: RunDir | None = None) -> tuple[RunDir, int, dict[str, int]]:
    """Runs `ingest`; returns the run, the number of events that were not read, and why others were dropped."""
    notes, run = list[str](), RunDir(str(root))
    context = Context(
        run=run,
        catalog=str(catalog),
        seed=0,
        fingerprint="f",
        log=notes.append,
        progress=lambda done, total: None,
        splits=True,
    )
    config = Config(partition_events=10, previous=previous and previous.root)
    found = stage("ingest").run(config, context).metrics["interactions"]
    entry = StageEntry(state="complete", fingerprint="f", metrics={"interactions": found})
    write_manifest(run.root, Manifest(name="tiny", stages={"ingest": entry, "features": StageEntry(state="complete")}))
    run.write_table(pa.table({"item_id": ["i0", "i1", "i2"], "embedding": [[1.0], [2.0], [3.0]]}), "embeddings")
    (carried,) = [int(note.split()[1]) for note in notes if "events are those of" in note] or [0]
    return run, carried, found["dropped"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of three items, whose log lies in thirty partitions, of which some are empty."""
    folder, random = tmp_path_factory.mktemp("first"), np.random.default_rng(0)
    pl.DataFrame({"item_id": ["i0", "i1", "i2"], "title": ["a", "b", "c"]}).write_parquet(folder / "items.parquet")
    log = {
        "user_id": [f"u{number}" for number in random.integers(0, 40, 300)],
        "item_id": [f"i{number}" for number in random.integers(0, 3, 300)],
        "timestamp": pl.Series(START + 1_000_000 * np.arange(1, 301)).cast(pl.Datetime("us", "UTC")),
        "label": random.integers(0, 2, 300).astype(np.float32),
        "hour": random.integers(0, 3, 300) / 2,
    }
    pl.DataFrame(log).write_parquet(folder / "interactions.parquet")
    return ingested(folder / "run", folder)[0]


def exported(run: RunDir, folder: Path, *events: Event) -> Path:
    with closing(open_store(uri := f"sqlite:{folder}/s.db", create=True)) as store:
        store.add(events)
    export(run.root, uri, str(folder / "out"), 30, str(folder), lambda done, total: None)
    return folder / "out"


def as_if_read(run: RunDir, folder: Path, catalog: Path) -> bool:
    """Whether the log of a run is what reading all of a catalogue comes to."""
    keys = [(name, "ascending") for name in ("timestamp", "user_id", "item_id", "label")]
    one, other = (read_log_table(each).sort_by(keys) for each in (run, ingested(folder / "whole", catalog)[0]))
    return bool(one.equals(other))


def test_an_exported_log_is_read_where_it_is_new(first: RunDir, tmp_path: Path) -> None:
    catalog = exported(first, tmp_path, LIKE)
    run, carried, dropped = ingested(tmp_path / "run", catalog, first)
    assert carried == 300
    assert dropped["duplicate_event"] == 0
    assert as_if_read(run, tmp_path, catalog)


def test_a_file_that_comes_while_the_log_is_read_is_new_to_the_next_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, deal = tmp_path / "shop", pieces.deal_events
    (catalog / "interactions").mkdir(parents=True)
    pl.DataFrame({"item_id": ["i0", "i1"], "title": ["a", "b"]}).write_parquet(catalog / "items.parquet")

    def come(name: str, user: str) -> None:
        times = pl.Series(START + 1_000_000 * np.arange(1, 11)).cast(pl.Datetime("us", "UTC"))
        log = {"user_id": [user] * 10, "item_id": ["i0", "i1"] * 5, "timestamp": times, "label": [1.0, 0.0] * 5}
        pl.DataFrame(log).write_parquet(catalog / "interactions" / name)

    def dealt(work: pieces.Work, number: int) -> dict[str, Any]:
        come("b.parquet", "ben")
        return deal(work, number)

    come("a.parquet", "ann")
    with monkeypatch.context() as patched:
        patched.setattr(pieces, "deal_events", dealt)
        run = ingested(tmp_path / "one", catalog)[0]
    following, carried, _ = ingested(tmp_path / "two", catalog, run)
    assert carried == 10
    assert as_if_read(following, tmp_path, catalog)


def test_a_row_that_is_exported_twice_is_dropped(first: RunDir, tmp_path: Path) -> None:
    late = Event("u1", "late", "i2", "like", 1.0, START + 10_500_000, None, END + 120_000_000)
    second, _, _ = ingested(tmp_path / "second", exported(first, tmp_path, LIKE, late), first)
    (tmp_path / "more").mkdir()
    catalog = exported(second, tmp_path / "more", LIKE, late)
    run, carried, dropped = ingested(tmp_path / "run", catalog, second)
    assert carried == 302
    assert dropped["duplicate_event"] == 1
    assert read_log_table(run).equals(read_log_table(second))
    assert as_if_read(run, tmp_path, catalog)


def without_a_user(part: Path) -> None:
    rows = pl.read_parquet(part)
    rows.filter(pl.col("user_id") != rows["user_id"][0]).write_parquet(part)


def renamed(part: Path) -> None:
    part.rename(part.with_name("other.parquet"))


@pytest.mark.parametrize("change", [without_a_user, Path.unlink, renamed])
def test_an_exported_log_whose_files_have_changed_is_read_whole(
    first: RunDir, tmp_path: Path, change: Callable[[Path], Any]
) -> None:
    catalog = exported(first, tmp_path, LIKE)
    parts = sorted((catalog / "interactions").iterdir())
    assert len(parts) < 30
    change(parts[1])
    run, carried, _ = ingested(tmp_path / "run", catalog, first)
    assert carried == 0
    assert as_if_read(run, tmp_path, catalog)


def test_nothing_new_comes_and_whoever_was_alone_in_a_partition_is_erased(first: RunDir, tmp_path: Path) -> None:
    users = [
        first.read_table("log", "users", f"part-{number:05d}.parquet")["user_id"].to_pylist() for number in range(30)
    ]
    gone = next(own[0] for own in users if len(own) == 1)
    with closing(open_store(f"sqlite:{tmp_path}/s.db", create=True)) as store:
        store.forget(gone, END)
    catalog = exported(first, tmp_path)
    run, carried, _ = ingested(tmp_path / "run", catalog, first)
    assert 250 < carried < 300
    assert as_if_read(run, tmp_path, catalog)


def test_an_export_may_be_put_elsewhere(first: RunDir, tmp_path: Path) -> None:
    catalog = exported(first, tmp_path, LIKE)
    shutil.copytree(catalog, tmp_path / "copy")
    assert ingested(tmp_path / "run", tmp_path / "copy", first)[1] == 300


@pytest.mark.parametrize("label", ["rating", "label"])
def test_ratings_go_on_from_an_export_whose_labels_are_0_and_1(tmp_path: Path, label: str) -> None:
    catalog, run, later = tmp_path / "catalog", RunDir(str(tmp_path / "run")), RunDir(str(tmp_path / "run-2"))
    catalog.mkdir()
    (catalog / "items.csv").write_text("item_id,title\na,A\nb,B\n")
    rows = [f"u{n % 7},{'ab'[n % 2]},{BEGUN_S + n},{n % 5 + 1}" for n in range(RATINGS)]
    (catalog / "interactions.csv").write_text("\n".join([f"user_id,item_id,timestamp,{label}", *rows]))
    settings = {"label": label, "positive_from": 4, "partition_events": 15}

    def goes_on(into: RunDir, source: Path, **more: str) -> list[str]:
        said = list[str]()
        context = Context(into, str(source), 0, into.root[-3:], said.append, lambda done, total: None)
        result = stage("ingest").run(Config(**settings, **more), context)
        entry = StageEntry(state="complete", fingerprint="one", metrics=result.metrics)
        write_manifest(into.root, Manifest(name="shop", stages={"ingest": entry, "features": entry}))
        return said

    goes_on(run, catalog)
    run.write_table(run.read_table("catalog", "items", columns=["item_id"]), "embeddings")
    store, target = f"sqlite:{tmp_path / 'users.db'}", tmp_path / "export"
    with closing(open_store(store, create=True)) as kept:
        kept.add([Event("u1", "e1", "a", "buy", 1.0, (BEGUN_S + 100) * 1_000_000, "r")])
    export(run.root, store, str(target), 30, str(catalog), lambda done, total: None)

    stages = {"ingest": {**settings, "previous": run.root}}
    preflight(resolve({"name": "shop", "catalog": str(target), "stages": stages}, source="shop"), later.root)
    assert f"{RATINGS} events are those of {run.root}, and 1 were read" in " ".join(
        goes_on(later, target, previous=run.root)
    )
    about = read_about(later)
    assert (about.events, about.positives, about.context) == (RATINGS + 1, RATINGS * 2 // 5 + 1, [])  # type: ignore[union-attr]
    assert read_log_table(later).slice(0, RATINGS).equals(read_log_table(run))
