"""Two runs behind one service: who is answered by which, and what is counted and kept; without Ray."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from serving.api.routes import http_api
from serving.pipeline import Pipeline
from serving.query import Query
from serving.runs import rolling
from serving.runs.side_by_side import Runs
from serving.settings import Settings
from serving.stores.base import Event
from serving.stores.opening import open_store
from storage.manifest import require_manifest, write_manifest
from storage.run import RunDir
from tests.serving.finished import ITEMS, next_run
from tests.serving.runs.following import USERS, listed, replicas, roll, store_at
from workflows.load import load_users


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
