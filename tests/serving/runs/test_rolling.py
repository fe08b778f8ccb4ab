"""Rolls between runs while a service answers, to broken ones and with replicas and stores that fail, too."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.semantic_ids.quantizer import Quantizer
from operators.columns import matrix_column, matrix_of
from serving.api import warm
from serving.api.errors import unavailable
from serving.pipeline import Pipeline
from serving.query import Query
from serving.runs import rolling
from serving.runs.opening import open_run
from serving.runs.rollout import read, reports
from serving.runs.side_by_side import Runs
from serving.stores.base import Event, LoadableStore
from serving.stores.opening import open_store
from storage.errors import StoreError, UserError
from storage.manifest import require_manifest, write_manifest
from storage.run import RunDir
from tests.serving.finished import next_run
from tests.serving.interpreted import other_projection
from tests.serving.runs.following import USERS, replicas, roll, store_at


def test_rolls_under_load_fail_nobody(uri: str, finished_run: RunDir, new_run: RunDir) -> None:
    store_at(uri, finished_run).close()
    old, new = (Pipeline(run, open_store(uri)).run for run in (finished_run, new_run))
    with replicas(uri, finished_run) as both:
        failed, seen, done = list[BaseException](), Counter[str](), threading.Event()

        def ask(runs: Runs) -> None:
            for number in itertools.count():
                if done.is_set():
                    return
                user = USERS[number % 30]
                try:
                    (answer,) = runs.recommend([Query(user_id=user, k=5, draw=str(number))])
                    assert len(answer.items) == 5
                    runs.add([Event(user, f"{id(runs)} {number}", answer.items[0].item_id, "view", 0.0, number)])
                    assert runs.item(answer.items[0].item_id)
                    seen[answer.run] += 1
                except BaseException as error:  # noqa: BLE001 - the thread's
                    failed.append(error)

        threads = [threading.Thread(target=ask, args=[runs]) for runs in both]
        for thread in threads:
            thread.start()
        roll(new_run, uri)
        assert [runs.run for runs in both] == [new, new]
        rolling.roll_back(uri, lambda line: None)
        assert [runs.run for runs in both] == [old, old]
        rolling.roll_back(uri, lambda line: None)
        roll(finished_run, uri, share=0.25)
        assert [runs.names for runs in both] == [[new, old]] * 2
        done.set()
        for thread in threads:
            thread.join()
        assert failed == []
        assert set(seen) == {old, new}
        assert len(reports(open_store(uri), finished_run.root)) == 2
    assert reports(open_store(uri), finished_run.root) == []


def damaged(run: RunDir) -> None:
    path = Path(run.uri("models", "ranker", "model.safetensors"))
    path.write_bytes(path.read_bytes()[:1000])


def without_table(run: RunDir) -> None:
    shutil.rmtree(run.uri("features", "items"))


def unfinished(run: RunDir) -> None:
    manifest = require_manifest(run.root)
    manifest.stages["rank"].state = "failed"
    write_manifest(run.root, manifest)


def of_other_items(run: RunDir) -> None:
    run.write_table(run.read_table("embeddings").slice(1), "embeddings")


def other_tokenizer(run: RunDir) -> None:
    quantizer = Quantizer.load(run.uri("models", "quantizer"))
    with torch.no_grad():
        for codebook in quantizer.codebooks:
            codebook.copy_(codebook.flip(0))
    quantizer.save(run.uri("models", "quantizer"))


def without_projection(run: RunDir) -> None:
    shutil.rmtree(run.uri("models", "projector"))


def of_another_ranker(run: RunDir) -> None:
    """One that has learned from embeddings of another width, in a run that came with its vectors."""
    table = run.read_table("embeddings")
    wider = np.pad(matrix_of(table["embedding"]), ((0, 0), (0, 1)))
    run.write_table(pa.table({"item_id": table["item_id"], "embedding": matrix_column(wider)}), "embeddings")
    for name in ("projector", "quantizer", "interpreter"):
        shutil.rmtree(run.uri("models", name))


def no_run(run: RunDir) -> None:
    shutil.rmtree(run.root)


BROKEN = {
    damaged: "The ranker at .* is damaged",
    without_table: r"cannot be loaded \(.*features/items",
    unfinished: "its stage rank is failed",
    of_other_items: "1 items are missing in embeddings",
    other_projection: "The projection of the run at .* is another one than made its embeddings",
    other_tokenizer: "The semantic IDs of the run at .* are of another tokenizer",
    without_projection: "There is no projector at",
    of_another_ranker: "cannot (be loaded|answer)",
    no_run: "There is no run at",
}


@pytest.mark.parametrize("breaks", BROKEN, ids=lambda breaks: breaks.__name__)
def test_a_broken_run_changes_nothing(uri: str, interpreted_run: RunDir, tmp_path: Path, breaks: Callable) -> None:
    store, broken = store_at(uri, interpreted_run), next_run(interpreted_run, tmp_path / "broken")
    breaks(broken)
    with replicas(uri, interpreted_run) as both:
        before, users = read(store), store.read([f"user {n}" for n in range(12)])
        with pytest.raises(UserError, match=BROKEN[breaks]) as caught:
            roll(broken, uri)
        assert "\n" not in str(caught.value)
        assert read(store) == before
        assert [user.trained for user in store.read([f"user {n}" for n in range(12)]) if user] == [
            user.trained for user in users if user
        ]
        assert [runs.run for runs in both] == [Pipeline(interpreted_run, store).run] * 2
        assert [runs.warning for runs in both] == [None, None]


def test_where_one_replica_cannot_load_it_no_replica_serves_it(uri: str, finished_run: RunDir, new_run: RunDir) -> None:
    store = store_at(uri, finished_run)
    lucky = itertools.count()

    def unlucky(root: str, opened: LoadableStore) -> Pipeline:
        if root == new_run.root and next(lucky) == 1:
            raise UserError("The disk of this node is away: mount it.")
        return open_run(root, opened)

    with replicas(uri, finished_run, opened=unlucky) as both:
        old = both[0].run
        with pytest.raises(UserError, match="all is served as before: The disk of this node is away: mount it"):
            roll(new_run, uri)
        served = read(store)
        assert served is not None
        assert [part.run for part in served.rollout.runs] == [finished_run.root]
        deadline = time.monotonic() + 30
        while any(runs.run != old or runs.warning for runs in both):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        roll(new_run, uri)
        assert both[0].run == both[1].run != old


@pytest.mark.parametrize("times", [1, 1_000])
@pytest.mark.parametrize("error", [unavailable("overloaded", "The language model is full."), KeyError("no such part")])
def test_what_is_full_for_a_while_is_no_damage(
    uri: str, finished_run: RunDir, new_run: RunDir, monkeypatch: pytest.MonkeyPatch, times: int, error: Exception
) -> None:
    monkeypatch.setattr(warm, "PAUSE_S", 0.01)
    store_at(uri, finished_run).close()

    def full(root: str, opened: LoadableStore) -> Pipeline:
        pipeline, asked = open_run(root, opened), itertools.count()
        answers = pipeline.recommend

        def recommend(queries):
            if root == new_run.root and next(asked) < times:
                raise error
            return answers(queries)

        pipeline.recommend = recommend  # type: ignore[method-assign]
        return pipeline

    with replicas(uri, finished_run, count=1, opened=full) as (runs,):
        if isinstance(error, KeyError):
            with pytest.raises(UserError, match="its parts do not fit each other"):
                roll(new_run, uri)
        else:
            roll(new_run, uri)
            assert (runs.run, runs.warning) == (Pipeline(new_run, open_store(uri)).run, None)


def test_a_store_that_is_away_for_a_moment_stops_no_roll(
    uri: str, finished_run: RunDir, new_run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_at(uri, finished_run).close()
    lucky = itertools.count()

    def away(root: str, opened: LoadableStore) -> Pipeline:
        if root == new_run.root and next(lucky) < 2:
            raise StoreError("The store redis://somewhere cannot be used.")
        return open_run(root, opened)

    with replicas(uri, finished_run, count=1, opened=away) as (runs,):
        roll(new_run, uri)
        assert (runs.run, runs.warning) == (Pipeline(new_run, open_store(uri)).run, None)


def test_a_replica_that_takes_too_long_is_not_waited_for(uri: str, finished_run: RunDir, new_run: RunDir) -> None:
    store_at(uri, finished_run).close()
    may_load = threading.Event()

    def slow(root: str, opened: LoadableStore) -> Pipeline:
        if root == new_run.root:
            may_load.wait(30)
        return open_run(root, opened)

    with replicas(uri, finished_run, count=1, opened=slow) as (runs,):
        with pytest.raises(UserError, match=r"1 of 1 replicas have not loaded it after 0\.1 seconds"):
            roll(new_run, uri, wait=0.1)
        may_load.set()
        assert len(runs.recommend([Query(user_id="user 1", k=3)])[0].items) == 3


def test_what_was_rolled_to_outlives_the_service(uri: str, finished_run: RunDir, new_run: RunDir) -> None:
    store_at(uri, finished_run).close()
    with pytest.raises(UserError, match="No service has used this store yet"):
        roll(new_run, uri)
    Runs(open_store(uri), finished_run.root, lambda root: open_run(root, open_store(uri)))
    assert roll(new_run, uri)[-1] == f"roll: what starts next serves {new_run.root} (1 of the users)"
    with replicas(uri, finished_run, count=1) as (runs,):
        assert runs.run == Pipeline(new_run, open_store(uri)).run
        with pytest.raises(UserError, match="is the first of the runs that are served"):
            roll(new_run, uri, share=0.5)
