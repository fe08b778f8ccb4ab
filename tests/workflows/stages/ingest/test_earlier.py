"""The log of the run before, by way of an export."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

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
from workflows.stages.ingest.stage import Config

START, EVENTS = 1_700_000_000, 40  # seconds


@pytest.mark.parametrize("label", ["rating", "label"])
def test_ratings_go_on_from_an_export_whose_labels_are_0_and_1(tmp_path: Path, label: str) -> None:
    catalog, run, later = tmp_path / "catalog", RunDir(str(tmp_path / "run")), RunDir(str(tmp_path / "run-2"))
    catalog.mkdir()
    (catalog / "items.csv").write_text("item_id,title\na,A\nb,B\n")
    rows = [f"u{n % 7},{'ab'[n % 2]},{START + n},{n % 5 + 1}" for n in range(EVENTS)]
    (catalog / "interactions.csv").write_text("\n".join([f"user_id,item_id,timestamp,{label}", *rows]))
    settings = {"label": label, "positive_from": 4, "partition_events": 15}

    def ingested(into: RunDir, source: Path, **more: str) -> list[str]:
        said = list[str]()
        context = Context(into, str(source), 0, into.root[-3:], said.append, lambda done, total: None)
        result = stage("ingest").run(Config(**settings, **more), context)
        entry = StageEntry(state="complete", fingerprint="one", metrics=result.metrics)
        write_manifest(into.root, Manifest(name="shop", stages={"ingest": entry, "features": entry}))
        return said

    ingested(run, catalog)
    run.write_table(run.read_table("catalog", "items", columns=["item_id"]), "embeddings")
    store, target = f"sqlite:{tmp_path / 'users.db'}", tmp_path / "export"
    with closing(open_store(store, create=True)) as kept:
        kept.add([Event("u1", "e1", "a", "buy", 1.0, (START + 100) * 1_000_000, "r")])
    export(run.root, store, str(target), 30, str(catalog), lambda done, total: None)

    stages = {"ingest": {**settings, "previous": run.root}}
    preflight(resolve({"name": "shop", "catalog": str(target), "stages": stages}, source="shop"), later.root)
    assert f"{EVENTS} events are those of {run.root}, and 1 were read" in " ".join(
        ingested(later, target, previous=run.root)
    )
    about = read_about(later)
    assert (about.events, about.positives, about.context) == (EVENTS + 1, EVENTS * 2 // 5 + 1, [])  # type: ignore[union-attr]
    assert read_log_table(later).slice(0, EVENTS).equals(read_log_table(run))
