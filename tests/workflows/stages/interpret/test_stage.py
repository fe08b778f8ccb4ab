from __future__ import annotations

import dataclasses
import io
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from storage import files
from storage.errors import UserError
from storage.run import RunDir
from tests.logs import write_log
from tests.workflows.interpreted import interpreted_here
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.stages import project
from workflows.stages.ingest import stage as ingest
from workflows.stages.interpret import stage as interpret

pytestmark = pytest.mark.long

ITEMS = 24
# captions have a pool of their own, so that rows change processes on the way
SETTINGS = interpret.Config(commit_rows=5, max_reject_share=1.0, caption={"pool": {"num_cpus": 0.5}})


def picture(rng: np.random.Generator) -> bytes:
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(out, format="PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """A catalogue with a good, a degraded and a rejected kind of item, ingested."""
    root = tmp_path_factory.mktemp("interpret")
    (root / "catalog").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i in range(ITEMS):
        (root / "catalog" / f"{i}.png").write_bytes(picture(rng) if i % 6 else b"broken")
        title = None if i % 12 == 0 or i % 4 == 1 else f"title {i}"
        rows.append({"item_id": f"item-{i}", "title": title, "media": [{"uri": f"{i}.png", "kind": "image"}]})
    pl.DataFrame(rows).write_parquet(root / "catalog" / "items.parquet")
    context = Context(
        run=RunDir(str(root / "run")),
        catalog=str(root / "catalog"),
        seed=0,
        fingerprint="f",
        log=lambda line: None,
        progress=lambda done, total: None,
    )
    stage("ingest").run(ingest.Config(), context)
    return context


@pytest.fixture(scope="module")
def streamed(context, ray_cluster):
    return stage("interpret").run(SETTINGS, context)


def test_the_stream_equals_the_operators_called_without_ray(context, streamed):
    table, found = interpreted_here(context), context.run.read_table("items").sort_by("item_id")

    assert found.schema.equals(interpret.items_schema(interpret.Config()))
    for name in ("item_id", "title", "description", "caption", "interests"):
        assert found[name].to_pylist() == table[name].to_pylist()
    for name in ("image_vector", "text_vector"):
        assert found[name].is_valid().to_pylist() == table[name].is_valid().to_pylist()
        ours, theirs = (np.asarray(t[name].drop_null().combine_chunks().flatten()) for t in (found, table))
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_every_row_has_its_outcome(context, streamed):
    assert (streamed.rows_in, streamed.rows_out, streamed.rejected, streamed.degraded) == (ITEMS, ITEMS - 2, 2, 2)
    rejects = context.run.read_table("rejects", "interpret").to_pylist()
    assert sorted((r["item_id"], r["severity"], r["code"]) for r in rejects) == [
        ("item-0", "degraded", "not_an_image"),
        ("item-0", "rejected", "nothing_to_interpret"),
        ("item-12", "degraded", "not_an_image"),
        ("item-12", "rejected", "nothing_to_interpret"),
        ("item-18", "degraded", "not_an_image"),
        ("item-6", "degraded", "not_an_image"),
    ]
    items = context.run.read_table("items").to_pylist()
    assert [row["item_id"] for row in items if row["caption"] is None] == [
        row["item_id"] for row in items if row["image_vector"] is None
    ]
    assert all(row["text_vector"] for row in items if row["title"] or row["caption"])


def test_a_second_attempt_computes_nothing_again(context, streamed, monkeypatch):
    before = [files.read_bytes(context.run.uri("items", "part-00000.parquet"))]
    monkeypatch.setattr(interpret.streams, "stream", lambda *args, **kwargs: pytest.fail("computed again"))
    again = stage("interpret").run(SETTINGS, context)
    assert again.metrics["reused"] == ITEMS
    assert [files.read_bytes(context.run.uri("items", "part-00000.parquet"))] == before


def test_projection_reads_what_the_stream_wrote(context, streamed):
    result = stage("project").run(project.Config(width=8), context)
    assert (result.rows_in, result.rows_out) == (ITEMS - 2, ITEMS - 2)
    embeddings = context.run.read_table("embeddings")
    assert embeddings["item_id"].to_pylist() == context.run.read_table("items")["item_id"].to_pylist()
    values = np.asarray(embeddings["embedding"].combine_chunks().flatten()).reshape(-1, 8)
    assert np.isfinite(values).all()
    assert abs(values.var(0).mean() - 1) < 0.1


def test_a_later_run_computes_what_is_new_and_takes_the_rest_from_the_cache(context, streamed):
    """Another run directory beside the first: one new picture, one moved, and one title changed."""
    root = Path(context.catalog).parent
    shutil.copytree(root / "catalog", root / "later")
    (root / "later" / "1.png").rename(root / "later" / "moved.png")
    (root / "later" / "new.png").write_bytes(picture(np.random.default_rng(1)))
    items = pl.read_parquet(root / "later" / "items.parquet").with_columns(
        title=pl.when(pl.col("item_id") == "item-2").then(pl.lit("other")).otherwise("title"),
        media=pl.when(pl.col("item_id") == "item-1")
        .then(pl.lit([{"uri": "moved.png", "kind": "image"}]))
        .otherwise("media"),
    )
    new = pl.DataFrame(
        [{"item_id": "new", "title": "brand new", "media": [{"uri": "new.png", "kind": "image"}]}], items.schema
    )
    pl.concat([items, new]).write_parquet(root / "later" / "items.parquet")
    later = dataclasses.replace(context, run=RunDir(str(root / "run-2")), catalog=str(root / "later"))
    stage("ingest").run(ingest.Config(), later)

    metrics = stage("interpret").run(interpret.Config(max_reject_share=1.0), later).metrics

    pictures = ITEMS - 4  # every sixth is broken
    assert (metrics["caption"]["computed"], metrics["caption"]["cached"]) == (1, pictures)
    assert (metrics["image_embedding"]["computed"], metrics["image_embedding"]["cached"]) == (1, pictures)
    assert metrics["text_embedding"]["computed"] == 2
    assert metrics["caption"]["cache_hit_rate"] == round(pictures / (pictures + 1), 4)
    first, second = ({r["item_id"]: r for r in c.run.read_table("items").to_pylist()} for c in (context, later))
    assert all(second[item_id]["caption"] == row["caption"] for item_id, row in first.items())


def test_the_gate_is_decided_by_what_the_first_part_of_the_log_says(context):
    """Of three items with media and equal texts, one is popular in time and one only later."""
    events = [("item-1", day) for day in range(8)] + [("item-2", 90 + day) for day in range(8)]
    stamps = pl.Series([datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day) for _, day in events])
    log = pl.DataFrame({"user_id": "u", "item_id": [item for item, _ in events], "timestamp": stamps})
    write_log(context.run, log.to_arrow())
    gate = {"popular_from": 5, "log_share": 0.5}
    target = context.run.uri("gated")
    interpret.write_source(interpret.Config(caption={"gate": gate}), context, target)
    found = {row["item_id"]: row["gate"] for row in files.read_table(target).to_pylist()}
    assert found["item-1"] == "open"
    assert found["item-2"] == found["item-3"] == "not_worth_it"
    files.remove(context.run.uri("log"))


def test_the_budget_goes_on_where_the_cache_remembers_and_starts_again_where_it_does_not(context, streamed, tmp_path):
    """Captions of the last run take no budget, so long as the cache can give them back."""

    def opened(**settings):
        config = interpret.Config(caption={"gate": {"budget": 4}, **settings.pop("caption", {})}, **settings)
        interpret.write_source(config, context, context.run.uri("gated"))
        gates = {row["item_id"]: row["gate"] for row in context.run.read_table("gated").to_pylist()}
        return {item_id for item_id, gate in gates.items() if gate == "open"}

    had = {row["item_id"] for row in context.run.read_table("items").to_pylist() if row["caption"]}
    remembered, forgotten = opened(), opened(cache=False)
    assert len(remembered) == len(forgotten) == 4
    assert not remembered & had
    assert forgotten & had
    assert opened(caption={"backend": "openai", "model": "other"}) == forgotten


def test_settings_that_only_loading_finds_wrong_end_the_stream_with_a_sentence(context, streamed):
    caption = {"backend": "huggingface", "model": str(Path(context.catalog)), "pool": {"num_cpus": 0.5}}
    wrong = dataclasses.replace(context, fingerprint="wrong")
    with pytest.raises(UserError, match=r"^transformers does not know .*: choose another\.$"):
        stage("interpret").run(interpret.Config(caption=caption, cache=False), wrong)
