"""Items of the run before, and the budget of captions in an update; on tables that are written by hand."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from operators.base import REJECTS
from storage import files
from storage.manifest import Manifest, StageEntry, write_manifest
from storage.run import RunDir
from workflows.catalogs.canonical import ITEMS
from workflows.engine.definition import dump, resolve
from workflows.engine.stage import Context
from workflows.stages.interpret.stage import Config, earlier_items, steps, write_source

OLD, NEW = [f"old {n}" for n in range(10)], [f"new {n}" for n in range(4)]
WITHOUT = {"old 8", "old 9"}  # a caption
RECIPE = "as now"


def write_items(run: RunDir, ids: list[str], *, renamed: str = "") -> None:
    rows = [
        {"item_id": name, "title": "T" * (name == renamed), "media": [{"uri": "/a.png", "kind": "image"}]}
        for name in ids
    ]
    run.write_table(pa.Table.from_pylist(rows, ITEMS), "catalog", "items")


def folder(config: Config) -> str:
    """Returns the folder in the cache that captions are kept in."""
    return next(step for step in steps(config, "", None) if step.name == "caption").operator.folder


@pytest.fixture
def before(tmp_path: Path) -> RunDir:
    """A run that has captioned all items but two."""
    run = RunDir(str(tmp_path / "run"))
    write_items(run, OLD)
    captions = [None if name in WITHOUT else "red" for name in OLD]
    items = pa.table({"item_id": OLD, "caption": pa.array(captions, pa.string())})
    run.write_table(items.replace_schema_metadata({"captions": folder(Config())}), "items")
    run.write_table(REJECTS.empty_table(), "rejects", "interpret")
    made = resolve({"name": "shop", "catalog": str(tmp_path), "stages": {"ingest": {}, "interpret": {}}}, source="shop")
    files.write_bytes(run.uri("workflow.yaml"), dump(made).encode())
    entry = StageEntry(state="complete", metrics={"recipe": RECIPE})
    write_manifest(run.root, Manifest(name="shop", stages={"interpret": entry}))
    return run


def opened(before: RunDir, config: Config, recipe: str) -> tuple[set[str], int]:
    """Returns the items that an update may caption, and the number of those that it takes over."""
    run = RunDir(f"{before.root}-2")
    write_items(run, OLD + NEW, renamed="old 0")
    context = Context(run, run.root, 0, "f", lambda line: None, lambda done, total: None)
    _, taken = write_source(config, context, run.uri("source"), earlier_items(config, recipe))
    return {row["item_id"] for row in run.read_table("source").to_pylist() if row["gate"] == "open"}, len(taken)


def test_captions_that_are_taken_over_take_no_budget_from_other_items(before: RunDir) -> None:
    config = Config(previous=before.root, cache=False, caption={"gate": {"budget": 7}})
    assert opened(before, config, RECIPE) == ({"old 0", *WITHOUT, *NEW}, 7)  # one says something else now


def test_captions_of_the_run_before_that_the_cache_remembers_come_last(before: RunDir, tmp_path: Path) -> None:
    config = Config(previous=before.root, caption={"gate": {"budget": 7}})
    (tmp_path / "_cache" / folder(config)).mkdir(parents=True)
    found, taken = opened(before, config, "another one")
    assert (len(found), taken) == (7, 0)
    assert found > {*WITHOUT, *NEW}


def test_captions_of_another_captioner_take_no_place_from_an_item(before: RunDir, tmp_path: Path) -> None:
    """Even where the cache has captions of this one, as of an earlier try."""
    caption = {"backend": "openai", "model": "other", "gate": {"budget": 7}}
    config = Config(previous=before.root, caption=caption)
    (tmp_path / "_cache" / folder(config)).mkdir(parents=True)
    forgotten = opened(before, config.model_copy(update={"cache": False}), "another one")
    assert opened(before, config, "another one") == forgotten
    assert forgotten[0] & set(OLD) - WITHOUT
