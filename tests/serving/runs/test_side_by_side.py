"""Two runs behind one service, and rolls between them while it answers; without Ray, whose part is elsewhere."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from fastapi.testclient import TestClient

from models.embedding.projector import Projector
from models.semantic_ids.quantizer import Quantizer
from operators.columns import matrix_column, matrix_of
from operators.project import Project
from serving import posted
from serving.api import warm
from serving.api.errors import unavailable
from serving.api.routes import http_api
from serving.finder import Finder
from serving.pipeline import Pipeline
from serving.query import NewItem, Query
from serving.runs import rolling, side_by_side
from serving.runs.opening import open_run
from serving.runs.rollout import read, reports
from serving.runs.side_by_side import Runs
from serving.settings import Settings
from serving.stores.base import Event, LoadableStore
from serving.stores.opening import open_store
from storage.errors import StoreError, UserError
from storage.manifest import require_manifest, write_manifest
from storage.run import RunDir
from tests.serving.conftest import ITEMS, next_run
from tests.serving.test_posted import png, write_interpreted_run
from tests.workflows.test_sid import write_sids
from workflows.load import load_users

USERS = [f"user {n}" for n in range(30)]


def store_at(uri: str, run: RunDir) -> LoadableStore:
    load_users(run.root, uri, 100, lambda done, total: None)
    return open_store(uri)


@pytest.fixture(scope="module")
def new_run(finished_run: RunDir, tmp_path_factory) -> RunDir:
    return next_run(finished_run, tmp_path_factory.mktemp("next") / "run")


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path}/users.db"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "LOOK_S", 0.02)
    monkeypatch.setattr(side_by_side, "BEAT_S", 0.2)
    monkeypatch.setattr(side_by_side, "COUNT_S", 0.0)
    monkeypatch.setattr(rolling, "LOOK_S", 0.02)


@contextmanager
def replicas(uri: str, run: RunDir, count: int = 2, opened: Callable | None = None) -> Iterator[list[Runs]]:
    """Services that follow what is to be served."""

    def opening(root: str) -> Pipeline:
        return (opened or open_run)(root, open_store(uri))

    found = [Runs(open_store(uri), run.root, opening) for _ in range(count)]
    for each in found:
        each.start()
    try:
        yield found
    finally:
        for each in found:
            each.close()


def roll(run: RunDir, uri: str, **how) -> list[str]:
    told: list[str] = []

    def fill() -> None:
        load_users(run.root, uri, 100, lambda done, total: None)

    rolling.roll(run.root, uri, fill, told.append, **how)
    return told


def listed(answers) -> list[list[str]]:
    return [[item.item_id for item in answer.items] for answer in answers]


def test_each_user_has_answers_of_one_run(uri: str, finished_run: RunDir, new_run: RunDir) -> None:
    store = store_at(uri, finished_run)
    alone = [Pipeline(run, store) for run in (finished_run, new_run)]
    with replicas(uri, finished_run) as both:
        told = roll(new_run, uri, share=0.5)
        assert (
            told[-1]
            == f"roll: 2 replicas serve {finished_run.root} (0.5 of the users) and {new_run.root} (0.5 of the users)"
        )
        queries = [Query(user_id=user, k=5) for user in USERS]
        of = [both[0].answering(user).run for user in USERS]
        assert set(of) == {alone[0].run, alone[1].run}
        one, two = (each.recommend(queries) for each in both)
        assert one == two
        assert [answer.run for answer in one] == of
        own = [alone[run == alone[1].run].recommend([query])[0] for run, query in zip(of, queries, strict=True)]
        assert listed(one) == listed(own)
        assert listed([alone[0].recommend([query])[0] for query in queries]) != listed(one)
        ranked = [both[0].rank(Query(user_id=user, k=3), ["item 1", "item 2", "item 3"]).run for user in USERS]
        assert ranked == of
        visitor = Query(history=["item 2"], k=3)
        assert {both[0].recommend([visitor])[0].run, both[0].similar(items=["item 1"], k=2).run} == {alone[0].run}


def test_a_user_whom_one_ranker_knows_is_a_stranger_to_the_other(
    uri: str, finished_run: RunDir, tmp_path: Path
) -> None:
    """Two runs with features of their own: the store says which of them has learned whom."""
    other = next_run(finished_run, tmp_path / "other")
    manifest = require_manifest(other.root)
    manifest.stages["features"].fingerprint = "features again"
    write_manifest(other.root, manifest)
    store = store_at(uri, finished_run)
    pipelines = [Pipeline(run, store) for run in (finished_run, other)]

    def numbers() -> list[int]:
        return [pipeline._users([Query(user_id="user 1")], pipeline.catalogue)[0].number for pipeline in pipelines]

    known, stranger = numbers()
    assert known != 0 == stranger
    load_users(other.root, uri, 100, lambda done, total: None)
    assert numbers() == [known, known]


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


def other_projection(run: RunDir) -> None:
    projector = Projector.load(run.uri("models", "projector"))
    dataclasses.replace(projector, components=projector.components[:, ::-1].copy()).save(run.uri("models", "projector"))


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


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory) -> RunDir:
    return write_interpreted_run(tmp_path_factory.mktemp("interpreted"))


@pytest.mark.parametrize("breaks", BROKEN, ids=lambda breaks: breaks.__name__)
def test_a_broken_run_changes_nothing(uri: str, interpreted: RunDir, tmp_path: Path, breaks: Callable) -> None:
    store, broken = store_at(uri, interpreted), next_run(interpreted, tmp_path / "broken")
    breaks(broken)
    with replicas(uri, interpreted) as both:
        before, users = read(store), store.read([f"user {n}" for n in range(12)])
        with pytest.raises(UserError, match=BROKEN[breaks]) as caught:
            roll(broken, uri)
        assert "\n" not in str(caught.value)
        assert read(store) == before
        assert [user.trained for user in store.read([f"user {n}" for n in range(12)]) if user] == [
            user.trained for user in users if user
        ]
        assert [runs.run for runs in both] == [Pipeline(interpreted, store).run] * 2
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


def test_users_events_and_what_is_hidden_are_of_no_run(uri: str, finished_run: RunDir, new_run: RunDir) -> None:
    store = store_at(uri, finished_run)
    with replicas(uri, finished_run, count=1) as (runs,):
        now = int(time.time() * 1e6)
        assert runs.add(
            [Event("user 1", "e1", "item 5", "like", 1.0, now), Event("new", "e2", "item 6", "like", 1.0, now)]
        ) == (2, [])
        runs.change_item("item 7", {"hidden": True})
        runs.delete_item("item 8")
        runs.forget("user 2")
        (liked, fresh) = store.read(["user 1", "new"])
        assert liked is not None
        for step in (
            lambda: roll(new_run, uri, share=0.5),
            lambda: roll(new_run, uri),
            lambda: rolling.roll_back(uri, print),
        ):
            step()
            again = store.read(["user 1", "new", "user 2"])
            assert again[2] is None
            assert [
                np.array_equal(one.items, other.items) for one, other in zip(again[:2], (liked, fresh), strict=True)
            ] == [True, True]
            for user in ("user 1", "new", "user 2"):
                found = listed(runs.recommend([Query(user_id=user, k=ITEMS)]))[0]
                assert not {"item 7", "item 8"} & set(found)
            assert (
                runs.answering("user 2")._users([Query(user_id="user 2")], runs.answering("user 2").catalogue)[0].number
                == 0
            )
            assert (runs.item("item 7")["hidden"], runs.item("item 8")) == (True, None)


def test_an_event_of_a_clock_that_is_ahead_does_not_bring_back_who_was_erased(
    store_uri: str, finished_run: RunDir
) -> None:
    store = open_store(store_uri, create=True)
    runs = Runs(store, finished_run.root, lambda root: Pipeline(finished_run, store))
    client = TestClient(http_api(runs, Settings(run=finished_run.root, store=store_uri, open=True)))
    ahead = datetime.now(UTC) + timedelta(seconds=30)
    event = {"user_id": "ahead", "item_id": "item 1", "type": "like"}
    of_before = [{**event, "event_id": str(n), "timestamp": str(ahead + timedelta(seconds=n))} for n in (0, 1, -40)]
    assert client.post("/v1/events/batch", json={"events": of_before}).json()["added"] == 3
    assert client.delete("/v1/users/ahead").status_code == 200
    assert client.post("/v1/events/batch", json={"events": of_before}).json()["added"] == 0
    assert (store.read(["ahead"]), store.events(["ahead"])) == ([None], [])
    since = {**event, "event_id": "since", "timestamp": str(ahead + timedelta(seconds=2))}  # of the same clock
    assert client.post("/v1/events", json=since).json()["added"] == 1
    store.close()


def test_answers_are_counted_by_run_and_those_in_the_shadow_are_not_shown(
    uri: str, finished_run: RunDir, new_run: RunDir
) -> None:
    store_at(uri, finished_run).close()
    settings = Settings(run=finished_run.root, store=uri, open=True)
    with replicas(uri, finished_run, count=1) as (runs,):
        runs.close()
        with TestClient(http_api(runs, settings)) as client:
            roll(new_run, uri, share=0.5)
            asked, acted = Counter[str](), Counter[str]()
            for number in range(60):
                user = USERS[number % 30]
                page = client.post("/v1/recommend", json={"user_id": user, "k": 3}).json()
                asked[page["run"]] += 1
                if number % 3 == 0:
                    event = {
                        "user_id": user,
                        "item_id": page["items"][0]["item_id"],
                        "recommendation_id": page["recommendation_id"],
                    }
                    for kind in ("view", "click", "like"):
                        assert client.post("/v1/events", json={**event, "type": kind}).json()["added"] == 1
                    acted[page["run"]] += 1
            client.post("/v1/recommend", json={"history": [], "k": 3})
            deadline = time.monotonic() + 30
            while sum(run["answers"] for run in client.get("/v1/runs").json()["runs"]) < 60:
                assert time.monotonic() < deadline
            state = client.get("/v1/runs").json()
            assert {run["run"]: (run["answers"], run["acted"]) for run in state["runs"]} == {
                name: (asked[name], acted[name]) for name in runs.names
            }
            first, second = state["runs"]
            assert (
                first["rate"]["low"]
                < first["rate"]["value"]
                == first["acted"] / first["answers"]
                < first["rate"]["high"]
            )
            assert first["difference"] is None
            assert second["difference"]["value"] == pytest.approx(second["rate"]["value"] - first["rate"]["value"])
            assert (state["replicas"], state["warning"]) == ({"alive": 1, "serving": 1}, None)

            roll(finished_run, uri)
            roll(new_run, uri, shadow=True)
            shown = client.post("/v1/recommend", json={"user_id": "user 3", "k": 3}).json()
            assert shown["run"] == runs.run
        kept = {each.recommendation_id: each for some in open_store(uri).every_impression() for each in some}
        unseen = kept[f"{shown['recommendation_id']}:shadow"]
        assert (unseen.run, unseen.shown, unseen.user_id) == (runs.names[1], False, "user 3")
        assert unseen.items == listed([runs.shadow([Query(user_id="user 3", k=3)])[0]])[0]
        state = runs.state()
        assert [(run["answers"], run["share"], run["shadow"]) for run in state["runs"]] == [
            (1, 1.0, False),
            (0, 0.0, True),
        ]


@pytest.fixture(scope="module")
def projected(interpreted: RunDir, tmp_path_factory) -> RunDir:
    """The interpreted run with another projection, and what follows from it."""
    other = next_run(interpreted, tmp_path_factory.mktemp("projected") / "run")
    other_projection(other)
    again = Project(other.uri("models", "projector"))(interpreted.read_table("items"))
    other.write_table(again.select(["item_id", "embedding"]), "embeddings")
    write_sids(other)
    return other


def test_posted_items_have_their_place_in_a_run_of_other_models(
    uri: str, interpreted: RunDir, projected: RunDir
) -> None:
    store, other = store_at(uri, interpreted), projected
    with replicas(uri, interpreted) as both:
        for n in range(3):
            both[n % 2].post_item(NewItem(f"new {n}", picture=png(3 + n)))
        both[0].change_item("new 2", {"hidden": True})
        before = {name: both[0].item(name) for name in ("new 0", "new 1", "new 2")}
        assert roll(other, uri)[-2] == "roll: 3 posted items have their places in the run"

        def everywhere(names: list[str], *, adopted: bool) -> None:
            for runs in both:
                for name in names:
                    # An adopted item is what is kept of its picture, a little less than what was posted.
                    like = {"picture": runs.picture(name)} if adopted else {"items": [f"item-{3 + int(name[-1])}"]}
                    assert listed([runs.similar(**like, k=1)]) == [[name]]
                    assert name in listed(runs.recommend([Query(history=["item-1"], k=60)]))[0]
            assert len({both[n % 2].item(name)["sid"] for n, name in enumerate(names)}) == len(names)

        everywhere(["new 0", "new 1"], adopted=True)
        assert both[1].item("new 2")["hidden"]
        assert both[1].picture("new 1") is not None
        both[0].post_item(NewItem("new 3", picture=png(6)))  # which the run of before has never seen
        both[1].change_item("new 1", {"attributes": {"kind": ["x"]}})
        rolling.roll_back(uri, lambda line: None)
        everywhere(["new 0"], adopted=False)
        everywhere(["new 3"], adopted=True)
        assert both[0].item("new 0") == before["new 0"]
        roll(other, uri, share=0.5)
        both[1].post_item(NewItem("new 4", picture=png(7)))
        for user in USERS:
            for runs in both:
                assert "new 4" in listed([runs.answering(user).similar(text="lamp", k=60)])[0]
        assert len(store.items_after(0)[1]) == 5


def test_where_items_find_no_place_others_are_posted_and_those_find_it_later(
    uri: str, interpreted: RunDir, projected: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posted, "RETRY_S", 0.0)
    store_at(uri, interpreted).close()
    interpret, away = Finder.interpreted, {"wool scarf"}

    def interpreted_here(finder: Finder, **fields: object) -> object:
        if fields.get("title") in away and finder._run.root == projected.root:
            raise ConnectionError("away")
        return interpret(finder, **fields)

    monkeypatch.setattr(Finder, "interpreted", interpreted_here)
    with replicas(uri, interpreted, count=1) as (runs,):
        for name, title in (("a", "blue lamp"), ("b", "wool scarf")):
            runs.post_item(NewItem(name, title=title))
        told = roll(projected, uri, share=0.5)
        assert told[1:3] == [
            "roll: 1 posted items have their places in the run",
            "roll: 1 posted items found no place in it (the log says why): the service tries again",
        ]
        for name in ("c", "d"):
            assert runs.post_item(NewItem(name, title="wool scarf"))["item_id"] == name
        assert runs.change_item("c", {"hidden": True})["hidden"]
        assert not runs.answering(None).unknown(["a", "b", "c", "d"])
        second = next(each for user in USERS if (each := runs.answering(user)).root == projected.root)
        assert second.unknown(["a", "b", "c", "d"]) == ["b", "c", "d"]
        away.clear()
        deadline = time.monotonic() + 30
        while second.unknown(["b", "c", "d"]):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_an_item_that_is_written_is_posted_even_if_the_store_goes_away_then(
    uri: str, interpreted: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_at(uri, interpreted).close()

    def away(*_: object) -> int:
        raise StoreError("The store is away.")

    with replicas(uri, interpreted, count=1) as (runs,):
        monkeypatch.setattr(posted.PostedItems, "adopt", away)
        assert runs.post_item(NewItem("a", title="wool scarf"))["item_id"] == "a"
        assert runs.change_item("a", {"hidden": True})["hidden"]
