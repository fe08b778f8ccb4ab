"""What has changed since the run before, and the verdict on it, over small logs that are written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from models.evaluation.verdict import ERASURE, KEEP, Limits
from storage.manifest import Manifest, StageEntry, write_manifest
from storage.run import RunDir
from tests.logs import write_log
from workflows.engine.stage import Context
from workflows.stages.evaluate.changes import item_changes, judge_update

ITEMS, USERS, PER_DAY = 20, 10, 50
DAY_US = 86_400_000_000
START = 20_000 * DAY_US  # in 2024


def events(days: int, *, first: int = 0, impressions: bool = False, seed: int = 0) -> pl.DataFrame:
    """The log of a shop for so many days; a third of it is liked, or with impressions as many rows again are shown."""
    random = np.random.default_rng(seed)
    day = np.repeat(np.arange(days), PER_DAY)
    found = pl.DataFrame(
        {
            "user_id": [f"user-{number}" for number in random.integers(0, USERS, len(day))],
            "item_id": [f"item-{number}" for number in random.integers(0, ITEMS, len(day))],
            "timestamp": np.sort(START + day * DAY_US + random.integers(0, DAY_US, len(day))),
            "label": (random.random(len(day)) < 1 / 3).astype(np.float32),
        }
    ).filter(pl.col("timestamp") >= START + first * DAY_US)
    if not impressions:
        return found
    liked = found.with_columns(label=pl.lit(1, pl.Float32))
    return pl.concat([liked, *(liked.with_columns(pl.col("timestamp") + n, label=pl.lit(0.0)) for n in range(1, 10))])


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
