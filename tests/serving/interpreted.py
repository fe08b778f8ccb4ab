"""A small run of real models, whose stages are called one by one without Ray."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from PIL import Image

from models.embedding.projector import Projector
from operators.base import apply, with_outcome
from operators.cached import CachedOperator
from operators.interpreter import save_interpreter
from serving.settings import RANKED, STAGES
from storage.manifest import Manifest, StageEntry, write_manifest
from storage.run import RunDir
from tests.logs import write_log
from tests.serving.finished import DAY_US, write_ranker
from tests.workflows.test_sid import WORDS, picture, row, write_sids
from workflows.engine import definition
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.stages.features import stage as features
from workflows.stages.interpret import stage as interpret

ITEMS = 24


def context_of(run: RunDir, catalog: str) -> Context:
    return Context(run, catalog, 0, "f", log=lambda line: None, progress=lambda done, total: None)


def write_interpreted_run(place: Path, *, width: int = 8) -> RunDir:
    """A finished run with a ranker; all items have a picture, the even ones a title, too."""
    (place / "catalog").mkdir()
    for n in range(ITEMS):
        picture(place / "catalog" / f"{n}.png", n)
    rows = [row(f"item-{n}", None if n % 2 else f"{WORDS[n % 6]} {n}", f"{n}.png") for n in range(ITEMS)]
    pl.DataFrame(rows).write_parquet(place / "catalog" / "items.parquet")
    stages = {"ingest": {}, "interpret": {"cache": False}, "project": {"width": width}, "quantize": {}}
    settings = definition.resolve({"name": "tiny", "catalog": str(place / "catalog"), "stages": stages}, source="tiny")
    run = RunDir(str(place / "run"))
    context = context_of(run, settings.catalog)
    stage("ingest").run(settings.stages.ingest, context)
    interpret.write_source(settings.stages.interpret, context, run.uri("source"))
    table = with_outcome(run.read_table("source"))
    operators = [step.operator for step in interpret.steps(settings.stages.interpret, settings.catalog, None)]
    for operator in operators:
        table = apply(operator, table)
    save_interpreter(run, [one.operator if isinstance(one, CachedOperator) else one for one in operators])
    run.write_table(table.select(interpret.items_schema(settings.stages.interpret).names), "items")
    stage("project").run(settings.stages.project, context)
    write_sids(run)
    random = np.random.default_rng(0)
    log = pa.table(
        {
            "user_id": [f"user {n}" for n in random.integers(0, 12, 300)],
            "item_id": [f"item-{n}" for n in random.integers(0, ITEMS - 2, 300)],
            "timestamp": pa.array(np.sort(random.integers(0, 90 * DAY_US, 300)), pa.timestamp("us", tz="UTC")),
            "label": pa.array((random.random(300) < 0.4).astype(np.float32)),
        }
    )
    write_log(run, log)
    stage("features").run(features.Config(history=5, long_history=4), context)
    write_ranker(run)
    complete = {name: StageEntry(state="complete", fingerprint=name) for name in (*STAGES, *RANKED)}
    write_manifest(run.root, Manifest(name="tiny", stages=complete))
    return run


def png(seed: int) -> bytes:
    """The picture of the item of this number."""
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.NEAREST).save(content, "PNG")
    return content.getvalue()


def other_projection(run: RunDir) -> None:
    """Turns the axes of a run's embeddings around: what another run has made of an item says nothing to it."""
    projector = Projector.load(run.uri("models", "projector"))
    dataclasses.replace(projector, components=projector.components[:, ::-1].copy()).save(run.uri("models", "projector"))
