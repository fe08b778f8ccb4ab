"""A catalogue that brings captions, interests and vectors: they are taken as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from operators.base import Operator, apply, set_columns, with_outcome
from operators.columns import matrix_column, matrix_of
from operators.given import Given
from operators.media.fetch import FetchMedia
from storage import files
from storage.errors import UserError
from storage.hashing import hash_order
from storage.run import RunDir
from workflows.catalogs.canonical import ITEMS
from workflows.catalogs.survey import survey
from workflows.distributed import streams
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.sid import _check_own_models
from workflows.stages import project
from workflows.stages.interpret import stage as interpret

ROWS = 70
TAGS = pa.list_(pa.string())


def items(**columns: Any) -> pa.Table:
    """The canonical items of a catalogue, with further columns."""
    table = pa.table(
        {"item_id": [f"i{n}" for n in range(ROWS)], "title": [f"title {n}" for n in range(ROWS)]}
        | {"attributes": pa.array([[("n", str(n))] for n in range(ROWS)], ITEMS.field("attributes").type)}
    )
    table = set_columns(
        table, {field.name: pa.nulls(ROWS, field.type) for field in ITEMS if field.name not in table.column_names}
    )
    return set_columns(table.select(ITEMS.names), columns)


def vectors(width: int, missing: int = 0) -> pa.Array:
    values = np.random.default_rng(width).normal(size=(ROWS, width)).astype(np.float32)
    return matrix_column(values, np.arange(ROWS) >= missing)


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A run in which neither Ray nor a model may be started."""
    monkeypatch.setattr(streams, "stream", lambda *_, **__: pytest.fail("a stream was started"))
    run = RunDir(str(tmp_path / "run"))
    return Context(run, "", 0, "f", lambda line: None, lambda done, total: None, connect=lambda: pytest.fail("Ray"))


def test_given_embeddings_pass_through_interpret_and_project(context: Context) -> None:
    table = items(embedding=vectors(6))
    context.run.write_table(table, "catalog", "items")
    files.write_json(context.run.uri("models", "projector", "config.json"), {})  # of an earlier state of the catalogue
    interpreted = stage("interpret").run(interpret.Config(), context)
    projected = stage("project").run(project.Config(), context)

    assert (interpreted.rows_in, interpreted.rows_out, projected.rows_out) == (ROWS, ROWS, ROWS)
    assert interpreted.metrics == {"given": ["embedding"]}
    assert projected.metrics == {"width": 6, "given": True}
    ordered = table.take(pa.array(hash_order(table["item_id"])))
    found = context.run.read_table("items")
    for name in ("item_id", "title", "attributes", "embedding"):
        assert found[name].equals(ordered[name])
    assert found["caption"].null_count == found["text_vector"].null_count == ROWS
    assert context.run.read_table("embeddings").equals(ordered.select(["item_id", "embedding"]))
    assert not files.exists(context.run.uri("models", "projector"))
    with pytest.raises(UserError, match=r"came with their embedding, which no model .* new items: add them to the cat"):
        _check_own_models(context.run)


def test_given_parts_are_projected_without_a_model(context: Context) -> None:
    whole = {"caption": pa.array(["red"] * ROWS), "interests": pa.array([["hats"]] * ROWS, TAGS)}
    table = items(**whole, image_vector=vectors(5, missing=9), text_vector=vectors(3))
    table = set_columns(table, {"title": pa.nulls(ROWS, pa.string())})
    context.run.write_table(table, "catalog", "items")
    stage("interpret").run(interpret.Config(), context)
    stage("project").run(project.Config(width=4), context)
    found = context.run.read_table("items").sort_by("item_id")
    for name in (*whole, "image_vector", "text_vector"):
        assert found[name].to_pylist() == table.sort_by("item_id")[name].to_pylist()
    assert matrix_of(context.run.read_table("embeddings")["embedding"]).shape == (ROWS, 4)


def test_an_item_without_anything_given_and_without_a_text_is_rejected(context: Context) -> None:
    table = items(
        caption=pa.array(["red"] * ROWS),
        interests=pa.array([["hats"]] * ROWS, TAGS),
        image_vector=vectors(5, missing=2),
    )
    table = set_columns(table, {"text_vector": table["image_vector"], "title": pa.nulls(ROWS, pa.string())})
    context.run.write_table(table, "catalog", "items")
    assert stage("interpret").run(interpret.Config(), context).rejected == 0  # the caption is worth keeping
    table = set_columns(table, {"interests": pa.array([None, ["hats"]] * (ROWS // 2), TAGS)})
    context.run.write_table(table, "catalog", "items")
    with pytest.raises(pytest.fail.Exception, match="Ray"):  # some interests are left to mine
        stage("interpret").run(interpret.Config(), context)


def test_what_is_given_takes_the_place_of_its_operator() -> None:
    def names(*given: str) -> list[str]:
        return [step.name for step in interpret.steps(interpret.Config(), "", None, given)]

    assert names() == ["fetch", "image_embedding", "caption", "interests", "text_embedding"]
    assert names("image_vector", "caption") == ["fetch", "caption", "interests", "text_embedding"]
    assert names("text_vector") == ["fetch", "image_embedding", "caption", "interests"]


class Shout(Operator):
    """Says the title aloud."""

    input_columns = ("title",)
    output_schema = pa.schema([("caption", pa.string()), ("loud", pa.bool_())])

    def __call__(self, table: pa.Table) -> pa.Table:
        said = [title.upper() for title in table["title"].to_pylist()]
        return set_columns(table, {"caption": pa.array(said), "loud": pa.array([True] * len(said))})


@pytest.mark.parametrize("given", [[None, "x", None], [None] * 3, ["x", "y", "z"]])
def test_an_operator_is_called_for_the_rows_that_lack_its_result(given: list[str | None]) -> None:
    table = with_outcome(pa.table({"title": ["a", "b", "c"], "caption": pa.array(given, pa.string())}))
    found = apply(Given(Shout(), "caption"), table)
    assert found["title"].to_pylist() == ["a", "b", "c"]
    assert found["caption"].to_pylist() == [one or title for one, title in zip(given, "ABC", strict=True)]
    assert found["loud"].to_pylist() == [None if one else True for one in given]


def test_an_item_that_brings_a_vector_has_something_to_interpret() -> None:
    table = with_outcome(items(title=pa.nulls(ROWS, pa.string()), text_vector=vectors(3, missing=1)))
    assert apply(FetchMedia("", given=("text_vector",)), table)["outcome"].to_pylist().count("rejected") == 1


def test_pictures_of_items_with_a_caption_and_a_vector_are_not_asked_for(context: Context) -> None:
    media = pa.array([[{"uri": "a.png", "kind": "image"}]] * ROWS, ITEMS.field("media").type)
    captions = pa.array(["red", None] * (ROWS // 2))
    context.run.write_table(items(media=media, caption=captions, image_vector=vectors(5)), "catalog", "items")
    interpret.write_source(interpret.Config(), context, context.run.uri("source"))
    found = context.run.read_table("source")
    assert found["media"].is_valid().to_pylist() == [False, True] * (ROWS // 2)
    assert found["gate"].to_pylist() == ["no_media", "open"] * (ROWS // 2)
    joint = interpret.Config(
        text_embedding={"backend": "sentence-transformers", "model": "m", "width": 8, "joint": True}
    )
    interpret.write_source(joint, context, context.run.uri("source"))
    found = context.run.read_table("source")
    assert found["media"].null_count == 0  # the model of texts looks at them, too
    assert found["gate"].to_pylist() == ["no_media", "open"] * (ROWS // 2)


def test_a_mix_is_told_before_anything_runs(tmp_path: Path) -> None:
    files.write_part(str(tmp_path / "items.parquet"), items(embedding=vectors(3, missing=4)))
    found = survey(str(tmp_path))
    with pytest.raises(UserError, match=r"^4 of 70 items of .* have no embedding: give every item one, or leave"):
        stage("interpret").check_data(interpret.Config(), found)
    assert found.unread == ()
    stage("interpret").check_data(interpret.Config(), replace(found, filled={**found.filled, "embedding": ROWS}))


def test_the_source_is_written_batch_by_batch(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    media = pa.array([[{"uri": "a.png", "kind": "image"}]] * ROWS, ITEMS.field("media").type)
    context.run.write_table(items(media=media, text_vector=vectors(5)), "catalog", "items")
    monkeypatch.setattr(RunDir, "read_table", lambda *_, **__: pytest.fail("read whole"))
    written = []
    for rows in (10_000, 3):
        monkeypatch.setattr(interpret, "BATCH_ROWS", rows)
        target = context.run.uri(f"source of {rows}")
        count, _ = interpret.write_source(interpret.Config(caption={"gate": {"budget": 4}}), context, target)
        written.append(files.read_table(target))
        assert count == written[-1].num_rows == ROWS
        assert written[-1]["gate"].to_pylist().count("open") == 4
    assert written[0].equals(written[1])
