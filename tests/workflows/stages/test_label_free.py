"""The ranker on a copy of the embedded catalogue without its label column: every row a positive, negatives sampled.

The ranker alone is the subject. Captions and semantic IDs are written from the true attributes, in place of a perfect
captioner, so what holds here says nothing of interpret, project and quantize.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from storage.manifest import Manifest, StageEntry, write_manifest
from storage.run import RunDir
from workflows.catalogs.synthetic.sample import write_sample
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.stages import rank
from workflows.stages.evaluate import stage as evaluate
from workflows.stages.features import stage as features
from workflows.stages.ingest import stage as ingest

pytestmark = pytest.mark.long


@pytest.mark.usefixtures("fits_here")
def test_given_true_captions_the_ranker_beats_popularity_without_labels(tmp_path):
    catalog = tmp_path / "catalog"
    write_sample(str(catalog), items=120, users=400, seed=1)
    log = pl.read_parquet(catalog / "interactions.parquet")
    log.filter(pl.col("label") > 0).drop("label").write_parquet(catalog / "interactions.parquet")
    truth = pl.read_parquet(catalog / "truth_items.parquet")
    context = Context(
        run=RunDir(str(tmp_path / "run")),
        catalog=str(catalog),
        seed=0,
        fingerprint="label-free",
        log=lambda line: None,
        progress=lambda done, total: None,
    )
    stage("ingest").run(ingest.Config(), context)
    write_items_from_truth(truth, context.run)

    stage("features").run(features.Config(), context)
    stage("rank").run(rank.Config(epochs=3), context)
    write_manifest(context.run.root, Manifest(name="label-free", stages={"rank": StageEntry(state="complete")}))
    metrics = stage("evaluate").run(evaluate.Config(bootstrap=50), context).metrics

    assert "truth" not in metrics  # sampled negatives have no true probability
    assert 0.5 < metrics["popularity"]["auc"] < metrics["ranker"]["auc"]


def write_items_from_truth(truth: pl.DataFrame, run: RunDir) -> None:
    """Write items, embeddings and sids in place of interpret, project and quantize.

    A caption is colour, pattern and material; items with one caption share a random embedding and a code prefix.
    """
    ids = run.read_table("catalog", "items").select(["item_id", "title", "description", "attributes"])
    words = truth.select(pl.col("item_id"), pl.concat_str(pl.col("colour", "pattern", "material"), separator=" "))
    spoken = dict(words.iter_rows())
    captions = [spoken.get(item) for item in ids["item_id"].to_pylist()]
    codes = np.unique([caption or "" for caption in captions], return_inverse=True)[1]
    values = np.random.default_rng(0).normal(size=(codes.max() + 1, 8)).astype(np.float32)[codes]
    sids = np.stack([codes % 8, codes // 8, np.arange(len(codes))], axis=1).astype(np.int32)
    items = ids.append_column("caption", pa.array(captions, pa.string()))
    run.write_table(items.append_column("interests", pa.nulls(len(items), pa.list_(pa.string()))), "items")
    for name, column, rows in (("embeddings", "embedding", values), ("sids", "codes", sids)):
        array = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
        run.write_table(pa.table({"item_id": ids["item_id"], column: array}), name)
