"""What has changed since the run before, and the verdict on it, over small logs that are written by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from models.evaluation.verdict import ERASURE, KEEP, PROMOTE, Limits
from storage import files
from storage.manifest import Manifest, StageEntry, write_manifest
from storage.run import RunDir
from tests.logs import write_log
from workflows.engine.stage import Context
from workflows.stages.evaluate.changes import item_changes, judge_update

ITEMS, USERS, DAYS, PER_DAY = 20, 10, 100, 50
DAY_US = 86_400_000_000
START = 20_000 * DAY_US  # in 2024


def events(days: int, *, first: int = 0, impressions: bool = False, seed: int = 0) -> pl.DataFrame:
    """The log of a shop for so many days; a third of it is liked, or with impressions as many rows again are shown."""
    random = np.random.default_rng(seed)
    day = np.repeat(np.arange(DAYS), PER_DAY)
    found = pl.DataFrame(
        {
            "user_id": [f"user-{number}" for number in random.integers(0, USERS, len(day))],
            "item_id": [f"item-{number}" for number in random.integers(0, ITEMS, len(day))],
            "timestamp": np.sort(START + day * DAY_US + random.integers(0, DAY_US, len(day))),
            "label": (random.random(len(day)) < 1 / 3).astype(np.float32),
        }
    ).filter(pl.col("timestamp").is_between(START + first * DAY_US, START + days * DAY_US, closed="left"))
    if not impressions:
        return found
    liked = found.with_columns(label=pl.lit(1, pl.Float32))
    return pl.concat(
        [liked, *(liked.with_columns(pl.col("timestamp") + n, label=pl.lit(0, pl.Float32)) for n in range(1, 10))]
    )


def run_of(folder: Path, log: pl.DataFrame, *, partitions: int = 2, **update: Any) -> RunDir:
    """A finished run of a log; `update` is what its own verdict told."""
    run, ids = RunDir(str(folder)), [f"item-{number}" for number in range(ITEMS)]
    attributes = pa.array([[("kind", "vase")]] * ITEMS, pa.map_(pa.string(), pa.string()))
    run.write_table(pa.table({"item_id": ids, "attributes": attributes}), "catalog", "items")
    run.write_table(pa.table({"item_id": ids}), "embeddings")
    stamps = pl.col("timestamp").cast(pl.Datetime("us", "UTC"))
    write_log(run, log.with_columns(stamps).to_arrow(compat_level=pl.CompatLevel.oldest()), partitions=partitions)
    run.write_json({}, "metrics", "quantize.json")
    metrics = {"update": update} if update else {}
    write_manifest(run.root, Manifest(name="shop", stages={"evaluate": StageEntry(state="complete", metrics=metrics)}))
    return run


def judged(run: RunDir, previous: RunDir, catalog: str = "nowhere") -> dict[str, Any]:
    quiet = {"log": lambda line: None, "progress": lambda done, total: None}
    return judge_update(Context(run, catalog, 0, "f", **quiet), previous.root, Limits(), {})


def broken(update: dict[str, Any]) -> list[str]:
    """What is wrong with the new data, if anything."""
    assert (update["verdict"] == KEEP) == (update["reasons"] != ["nothing is scored"])
    return update["reasons"] if update["verdict"] == KEEP else []


def test_items_without_attributes_have_no_new_values(tmp_path: Path) -> None:
    old, new = (run_of(tmp_path / name, events(3)) for name in ("old", "new"))
    pairs: list[Any] = [None, [], [("kind", None)], [("kind", "lamp")], [("kind", "clock"), ("size", "1")]]
    table = pa.table({"item_id": list("abcde"), "attributes": pa.array(pairs, pa.map_(pa.string(), pa.string()))})
    new.write_table(table, "catalog", "items")
    assert item_changes(new, old)["new_values"] == {"kind": ["clock", "lamp"]}
    assert item_changes(old, new)["new_values"] == {"kind": ["vase"]}


def test_a_refit_is_due_so_long_behind_the_last_log_that_had_the_users(tmp_path: Path) -> None:
    """Each week the verdict was to keep the first run, so that every update goes on from it."""
    old = run_of(tmp_path / "old", events(60))
    for days, due in ((89, False), (90, True)):
        log = events(days).filter(pl.col("user_id") != "user-1")
        update = judged(run_of(tmp_path / str(days), log, partitions=2), old)
        assert update["learned_from"]["users"] == 1
        assert (update["learned_from"]["since"], update["learned_from"]["refit_by"]) == ("2024-12-02", "2025-01-01")
        assert update["learned_from"]["due"] == due


def test_deleted_items_alone_never_ask_for_a_refit(tmp_path: Path) -> None:
    told = {"users": 0, "items": 1, "since": "2024-01-01", "refit_by": "2024-01-31", "due": False, "told": ""}
    old = run_of(tmp_path / "old", events(60), learned_from=told)
    update = judged(run_of(tmp_path / "new", events(67)), old)
    assert {**update["learned_from"], "told": ""} == {**told, "since": None, "refit_by": None}
    later = judged(run_of(tmp_path / "later", events(67).filter(pl.col("user_id") != "user-1")), old)
    assert later["learned_from"]["since"] == "2024-12-02"  # begins with the first user
    assert later["learned_from"]["items"] == 1


def test_the_clock_of_erased_users_goes_on_in_later_runs(tmp_path: Path) -> None:
    told = {"users": 2, "items": 0, "since": "2024-11-08", "refit_by": "2024-12-08", "due": False, "told": ""}
    old = run_of(tmp_path / "old", events(60), learned_from=told)
    update = judged(run_of(tmp_path / "new", events(67)), old)
    assert update["learned_from"]["due"]
    assert update["learned_from"]["since"] == "2024-11-08"
    assert update["verdict"] == ERASURE


def test_a_user_who_was_erased_and_came_back_is_gone(tmp_path: Path) -> None:
    old, log = run_of(tmp_path / "old", events(30)), events(37)
    erased = (pl.col("user_id") == "user-1") & (pl.col("timestamp") < START + 30 * DAY_US)
    assert log.filter(~erased)["user_id"].n_unique() == USERS
    assert judged(run_of(tmp_path / "new", log.filter(~erased)), old)["log"]["users_gone"] == 1


def test_what_is_shown_in_vain_is_no_news_to_a_log_of_positives(tmp_path: Path) -> None:
    """A log without labels, exported week by week: the export adds what the service has shown, with label 0."""
    whole, start = events(90, impressions=True), 60
    liked = pl.col("label") == 1

    def exported(name: str, week: int) -> RunDir:
        until, served = (START + days * DAY_US for days in (start + 7 * week, start))
        shown = liked | (pl.col("timestamp") >= served)
        log = whole.filter(shown & (pl.col("timestamp") < until))
        return run_of(tmp_path / name, log if week else log.drop("label"))

    runs = [exported(f"week-{week}", week) for week in range(4)]
    for old, new in pairwise(runs):
        update = judged(new, old)
        assert (update["verdict"], update["log"]["rate"] is None) == (PROMOTE, old is runs[0])
        assert update["log"]["per_day"] == pytest.approx(update["log"]["usual_per_day"], rel=0.2)
    flooded = whole.filter(liked & (pl.col("timestamp") < START + start * DAY_US))
    flooded = pl.concat([flooded, *(events(67, first=60, impressions=True, seed=seed) for seed in range(3))])
    assert "150 events a day came in, where 50 are usual" in broken(
        judged(run_of(tmp_path / "flood", flooded), runs[0])
    )


def test_labels_that_vanish_are_noticed(tmp_path: Path) -> None:
    old, new = run_of(tmp_path / "old", events(60)), run_of(tmp_path / "new", events(67).drop("label"))
    assert "100.0% of the new events are positive" in broken(judged(new, old))[0]


def test_new_events_of_a_log_without_times_are_those_that_the_old_one_lacks(tmp_path: Path) -> None:
    files.write_json(str(tmp_path / "catalog" / "catalog.json"), {"timestamps": "order"})

    def run(name: str, days: int, *, gone: str = "") -> RunDir:
        log = events(days).filter(pl.col("user_id") != gone)
        return run_of(tmp_path / name, log.with_columns(timestamp=pl.int_range(pl.len()).over("user_id") * 1_000_000))

    old, catalog = run("old", 60), str(tmp_path / "catalog")
    update = judged(run("new", 67), old, catalog)
    assert broken(update) == []
    assert (update["log"]["new"], update["log"]["per_day"]) == (7 * PER_DAY, None)
    assert (update["log"]["expected"], update["log"]["kept"]) == (60 * PER_DAY, 60 * PER_DAY)
    assert update["log"]["usual"] == 60 * PER_DAY
    assert broken(judged(run("same", 60), old, catalog)) == ["no event is newer than those of the run before"]
    erased = judged(run("erased", 67, gone="user-1"), old, catalog)
    assert erased["log"]["users_gone"] == 1
    assert "are missing" in broken(erased)[0]
    assert erased["learned_from"]["refit_by"] is None  # nothing tells what day it is
