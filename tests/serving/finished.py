"""Finished runs of hand-made artifacts, and what tests of the service do to them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from benchmarks.decode import SMALL, draw_model, draw_paths
from models.generation.language import LanguageModel
from models.generation.trie import Trie
from models.ranking.ranker import Ranker, moments, save_ranker
from models.ranking.settings import RankerSettings
from models.recommenders.language_model import LanguageModelRecommender, corpus_of_ids
from models.recommenders.settings import LanguageModelSettings
from operators.columns import matrix_column
from operators.features.ranker_inputs import Examples, laid_out
from serving.settings import RANKED, STAGES
from serving.stores.base import LoadableStore
from serving.stores.opening import open_store
from storage.manifest import Manifest, StageEntry, require_manifest, write_manifest
from storage.run import RunDir
from tests.logs import write_log
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.load import load_users
from workflows.stages.features import stage as features

ITEMS, USERS, EVENTS, WIDTH = 60, 30, 900, 8
DAY_US = 86_400_000_000


def write_run(root: Path, *, labels: bool) -> RunDir:
    """A finished run: hand-made artifacts, the real features stage, and a ranker of random weights."""
    random = np.random.default_rng(0)
    run = RunDir(str(root))
    ids = [f"item {n}" for n in range(ITEMS)]
    titles = pa.array([None if n % 5 == 0 else f"title {n}" for n in range(ITEMS)], pa.string())
    captions = pa.array([None if n % 7 == 0 else f"a thing of kind {n % 4}" for n in range(ITEMS)], pa.string())
    media = [[{"uri": f"media/{n}.jpg", "kind": "image"}] for n in range(ITEMS)]
    attributes = pa.array(
        [None if n % 3 == 0 else [("kind", str(n % 4))] for n in range(ITEMS)], pa.map_(pa.string(), pa.string())
    )
    described = pa.table({"item_id": ids, "title": titles, "description": titles})
    run.write_table(
        described.append_column("media", pa.array(media)).append_column("attributes", attributes), "catalog", "items"
    )
    interests = pa.array([[f"kind {n % 4}"] if n % 2 else None for n in range(ITEMS)], pa.list_(pa.string()))
    interpreted = described.append_column("caption", captions).append_column("interests", interests)
    run.write_table(interpreted.append_column("attributes", attributes), "items")
    vectors = pa.array(random.normal(size=ITEMS * WIDTH).astype(np.float32))
    embeddings = pa.table({"item_id": ids, "embedding": pa.FixedSizeListArray.from_arrays(vectors, WIDTH)})
    run.write_table(embeddings.take(random.permutation(ITEMS)), "embeddings")
    codes = np.stack([np.arange(ITEMS) % 4, np.arange(ITEMS) % 5, np.arange(ITEMS)], axis=1)
    run.write_table(pa.table({"item_id": ids, "codes": matrix_column(codes)}), "sids")

    item = random.integers(0, ITEMS - 3, EVENTS)  # the last three items are new
    users = [f"user {n}" for n in random.integers(0, USERS, EVENTS - 20)] + ["late user"] * 20  # not in training
    log = pa.table(
        {
            "user_id": pa.array(users),
            "item_id": pa.array([ids[n] for n in item]),
            "timestamp": pa.array(np.sort(random.integers(0, 90 * DAY_US, EVENTS)), pa.timestamp("us", tz="UTC")),
            "position": random.integers(1, 9, EVENTS).astype(np.float32),
        }
    )
    if labels:
        log = log.append_column("label", pa.array((random.random(EVENTS) < 0.3).astype(np.float32)))
    write_log(run, log)
    context = Context(run, str(root), 0, "f", log=lambda line: None, progress=lambda done, total: None)
    stage("features").run(features.Config(history=5, long_history=4 if labels else 0), context)
    write_ranker(run)
    write_manifest(
        str(root),
        Manifest(
            name="tiny", stages={name: StageEntry(state="complete", fingerprint=name) for name in (*STAGES, *RANKED)}
        ),
    )
    return run


def write_language_model(run: RunDir) -> None:
    """A language model of random weights, among the recommenders of the run."""
    codes, sizes = draw_paths(ITEMS, (4, 4, 4), seed=0)
    model, settings = draw_model(LanguageModel, SMALL, sizes, seed=0), LanguageModelSettings(beams=20, history=5)
    corpus = corpus_of_ids(settings, model.vocabulary, codes)
    trie = Trie.build(codes, model.vocabulary.sizes)
    kind = LanguageModelRecommender.kind
    LanguageModelRecommender(model, corpus, trie, settings).save(
        run.uri("models", "generator", kind), model.state_dict()
    )
    run.write_json({"valid": {kind: {}}, "chosen": kind}, "metrics", "generate.json")
    manifest = require_manifest(run.root)
    manifest.stages["generate"] = StageEntry(state="complete", fingerprint="generate")
    write_manifest(run.root, manifest)


def write_ranker(run: RunDir, seed: int = 0) -> None:
    spec = run.read_json("features", "spec.json")
    config = RankerSettings(target_attention="long_history" in spec).ranker(spec, WIDTH)
    torch.manual_seed(seed)
    ranker = Ranker(config)
    ranker.embeddings.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.normal_(std=0.1)
    train = Examples(run.read_table("features", "train"), spec["dense"])
    items = laid_out(run.read_table("features", "items"), run.read_table("embeddings"), config)
    ranker.set_statistics(dense=moments(train.dense), content=moments(items.embedding), rate=0.3)
    save_ranker(run.uri("models", "ranker"), config, ranker.state_dict())
    run.write_json({"popularity_weight": 1.0}, "models", "retriever", "config.json")


def next_run(run: RunDir, place: Path) -> RunDir:
    """A copy of a run with another ranker, as if it had been fitted anew."""
    shutil.copytree(run.root, place)
    new = RunDir(str(place))
    write_ranker(new, seed=1)
    manifest = require_manifest(new.root)
    manifest.stages["rank"].fingerprint = "rank again"
    write_manifest(new.root, manifest)
    return new


def store_of(run: RunDir) -> LoadableStore:
    """The users of a run in a store beside it."""
    uri = f"sqlite:{run.root}/users.sqlite"
    load_users(run.root, uri, batch=100, progress=lambda done, total: None)
    return open_store(uri)
