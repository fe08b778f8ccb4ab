from __future__ import annotations

import sqlite3
import time
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest

from serving.stores import sqlite
from serving.stores.base import Event
from serving.stores.opening import open_store
from tests.serving.api.fake import ITEMS
from tests.serving.api.test_routes import refused
from tests.serving.api.test_security import bearer, line
from tests.stores import redis_server

LIKE = {"user_id": "u", "item_id": ITEMS[1], "type": "like"}


def test_an_event_is_kept_with_its_weight_and_time(client, fake) -> None:
    before = time.time()
    answer = client.post("/v1/events", json={**LIKE, "recommendation_id": "r"})
    assert answer.json() == {"added": 1, "known": 0, "unknown": []}
    (event,) = fake.events.values()
    assert event == Event("u", event.event_id, ITEMS[1], "like", 1.0, event.time, "r", event.time)
    assert event.event_id
    assert before <= event.time / 1e6 <= time.time()


def test_a_batch_is_kept_and_what_is_sent_again_is_known(client, fake) -> None:
    at = "2026-01-02T03:04:05+01:00"
    events = [
        {**LIKE, "event_id": "1", "timestamp": at},
        {**LIKE, "type": "dislike", "event_id": "2", "item_id": "?"},
        {**LIKE, "type": "view", "event_id": "3"},
    ]
    assert client.post("/v1/events/batch", json={"events": events}).json() == {"added": 3, "known": 0, "unknown": ["?"]}
    assert client.post("/v1/events/batch", json={"events": events[:2]}).json()["known"] == 2
    assert [event.weight for event in fake.events.values()] == [1.0, -1.0, 0.0]
    old = fake.events["u", "1"]
    assert old.time == int(datetime.fromisoformat(at).timestamp() * 1e6)
    assert time.time() - 60 < old.kept / 1e6 <= time.time()


@pytest.mark.parametrize(("seconds", "weight"), [(None, 0.0), (5.0, 0.0), (30.0, 1.0)])
def test_a_short_dwell_says_nothing(client, fake, seconds, weight) -> None:
    client.post("/v1/events", json={**LIKE, "type": "dwell", "value": seconds})
    assert [event.weight for event in fake.events.values()] == [weight]


def test_types_are_those_of_the_settings(serve, fake) -> None:
    client = serve(event_weights={"stream": 0.5})
    assert client.post("/v1/events", json={**LIKE, "type": "stream"}).status_code == 200
    message = refused(client.post("/v1/events", json=LIKE), 422, "invalid")
    assert message == "type: there is no 'like'; choose among stream."


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"type": "wink"}, "type: there is no 'wink'; choose among view, click, like, buy, dwell, dislike."),
        ({"timestamp": (datetime.now(UTC) + timedelta(days=1)).isoformat()}, "timestamp: it lies in the future; "),
        ({"timestamp": "2026-01-02T03:04:05"}, "timestamp: Input should have timezone info"),
        ({"user_id": ""}, "user_id: String should have at least 1 character"),
        ({"wait": 1}, "wait: Extra inputs are not permitted"),
    ],
)
def test_a_bad_event_is_told_what_is_wrong_and_nothing_is_kept(client, fake, change, sentence) -> None:
    assert refused(client.post("/v1/events", json={**LIKE, **change}), 422, "invalid").startswith(sentence)
    refused(client.post("/v1/events/batch", json={"events": [LIKE, {**LIKE, **change}]}), 422, "invalid")
    assert fake.events == {}


@pytest.mark.parametrize("user_id", ["user 1", "a/b", "two\nlines", "?"])
def test_a_user_is_forgotten(client, fake, user_id) -> None:
    fake.liked[user_id] = fake.liked.get(user_id, [])
    assert client.delete(f"/v1/users/{quote(user_id, safe='')}").json() == {"forgotten": True}
    assert user_id not in fake.liked


def test_nobody_is_no_user_to_be_forgotten(client, fake) -> None:
    fake.liked[""] = [ITEMS[0]]  # the id under which a store keeps what visitors were shown
    message = refused(client.delete("/v1/users/"), 422, "invalid")
    assert message == "user_id: String should have at least 1 character."
    assert fake.liked[""] == [ITEMS[0]]


def test_who_may_write_and_who_may_erase(serve, tmp_path) -> None:
    (tmp_path / "keys").write_text("\n".join(line(role, role) for role in ("read", "write", "admin")))
    client = serve(open=False, keys=str(tmp_path / "keys"))
    for role, status in {"read": 403, "write": 200, "admin": 200}.items():
        assert client.post("/v1/events", json=LIKE, headers=bearer(role)).status_code == status
        assert client.post("/v1/events/batch", json={"events": [LIKE]}, headers=bearer(role)).status_code == status
    for role, status in {"read": 403, "write": 403, "admin": 200}.items():
        assert client.delete("/v1/users/a/b", headers=bearer(role)).status_code == status


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_where_the_store_is_away_an_event_is_to_be_sent_again(serve, fake, tmp_path, monkeypatch, caplog, kind) -> None:
    monkeypatch.setattr(sqlite, "BUSY_S", 0.1)
    with ExitStack() as server, ExitStack() as held:
        path = tmp_path / "users.db"
        uri = f"sqlite:{path}" if kind == "sqlite" else server.enter_context(redis_server())
        store = held.enter_context(closing(open_store(uri, create=True)))
        fake.add = lambda events: (store.add(events), [])
        client = serve()
        assert client.post("/v1/events", json=LIKE).json()["added"] == 1
        if kind == "sqlite":
            held.enter_context(closing(sqlite3.connect(path))).execute("BEGIN IMMEDIATE")
        server.close()
        answer = client.post("/v1/events", json=LIKE)
        assert refused(answer, 503, "unavailable") == "The store does not answer: try again."
        assert answer.headers["retry-after"] == "1"
        assert f"The store {uri.removeprefix('sqlite:')} cannot be used" in caplog.text


def test_answers_are_kept(serve, fake) -> None:
    client = serve()
    fake.shown.clear()
    page = client.post("/v1/recommend", json={"user_id": "user 1", "k": 3}).json()
    client.get("/v1/search", params={"text": "x"})
    client.__exit__()
    first, second = fake.shown
    assert (first.user_id, first.recommendation_id) == ("user 1", page["recommendation_id"])
    assert (first.run, first.route) == (page["run"], "/v1/recommend")
    assert first.items == [item["item_id"] for item in page["items"]]
    assert first.scores == [item["score"] for item in page["items"]]
    assert (first.recommenders, first.propensities) == ([["content"]] * 3, [1.0] * 3)
    assert (second.user_id, second.route) == (None, "/v1/search")
    client.__enter__()


def test_answers_go_on_where_they_cannot_be_kept(serve, fake) -> None:
    fake.show = lambda impressions: 1 / 0
    client = serve()
    assert client.get("/v1/search", params={"text": "x"}).status_code == 200
    deadline = time.monotonic() + 30
    while "tesserec_impressions_lost_total{" not in client.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_service_may_keep_no_answers(serve, fake) -> None:
    client = serve(impressions=False)
    assert client.get("/v1/search", params={"text": "x"}).status_code == 200
    assert fake.shown == []


def test_events_are_counted(client) -> None:
    for _ in range(2):
        client.post("/v1/events", json=LIKE)
    assert 'tesserec_events_total{run="fake:0123456789abcdef",type="like"} 2.0' in client.get("/metrics").text
