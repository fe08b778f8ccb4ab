from __future__ import annotations

import json
import logging
import threading
import time

import pytest
from fastapi.testclient import TestClient

from serving.api import logs, warm
from serving.api.errors import unavailable
from serving.api.routes import http_api
from serving.settings import Settings
from storage.errors import StoreError
from tests.serving.api.test_routes import ids, refused


def eventually(true) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, logger=logs.LOG.name)
    return lambda: [json.loads(record.message) for record in caplog.records if record.name == logs.LOG.name]


@pytest.mark.parametrize("given", ["abc-1.2_3", "a" * 64])
def test_a_sane_request_id_is_kept(client, given) -> None:
    assert client.get("/healthz", headers={"X-Request-Id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "a" * 65, "a\tb", '"}'])
def test_another_is_made(client, given) -> None:
    made = [client.get("/healthz", headers={"X-Request-Id": given}).headers["x-request-id"] for _ in range(2)]
    assert given not in made
    assert len(set(made)) == 2


def test_every_request_has_a_line_without_its_user(client, lines, fake) -> None:
    fake.unlucky = "unlucky"
    client.post("/v1/recommend", json={"user_id": "user 1"}, headers={"X-Request-Id": "mine"})
    client.get("/v1/items/user 1")
    client.get("/v1/search", params={"text": "user 1"})
    client.post("/v1/recommend", json={"user_id": "unlucky"})
    client.post("/v1/recommend", json={"user_id": ["user 1"]})
    found = lines()
    assert [(line["route"], line["status"]) for line in found] == [
        ("/v1/recommend", 200),
        ("/v1/items/{item_id:any}", 404),
        ("/v1/search", 200),
        ("/v1/recommend", 500),
        ("/v1/recommend", 422),
    ]
    assert (found[0]["request_id"], found[0]["method"], found[0]["run"]) == ("mine", "POST", fake.run)
    assert found[0]["recommendation_id"]
    assert found[3]["error"][0] == "ZeroDivisionError"
    assert "user 1" not in json.dumps(found)
    assert "unlucky" not in json.dumps(found)


def test_what_no_one_foresaw_is_told_without_its_cause(client, fake) -> None:
    fake.unlucky = "unlucky"
    answer = client.post("/v1/recommend", json={"user_id": "unlucky"})
    assert "unlucky" not in refused(answer, 500, "internal")


@pytest.mark.parametrize("chunks", [1, 40])
def test_bodies_are_bounded_with_and_without_a_length(serve, chunks) -> None:
    client, body = serve(max_body_bytes=2_000), b" " * 4_000
    content = body if chunks == 1 else (body[n : n + 100] for n in range(0, 4_000, 100))
    answer = client.post("/v1/recommend", content=content, headers={"content-type": "application/json"})
    assert "2,000 bytes" in refused(answer, 413, "too_large")


def test_overload_is_refused_with_a_time_to_try_again(serve, fake) -> None:
    client, answers = serve(max_in_flight=2), []
    with fake.held():
        threads = [
            threading.Thread(target=lambda: answers.append(client.get("/v1/search", params={"text": "a"})))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: "tesserec_requests_under_way 2.0" in client.get("/metrics").text)
        answer = client.post("/v1/recommend", json={"user_id": "a"})
        refused(answer, 503, "overloaded")
        assert answer.headers["retry-after"] == "1"
        assert client.get("/healthz").status_code == 200
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200, 200]
    assert client.get("/v1/search", params={"text": "a"}).status_code == 200


def test_who_waits_too_long_is_told_and_counts_until_the_work_ends(serve, fake) -> None:
    client = serve(max_in_flight=1, timeout_seconds=0.2)
    with fake.held():
        answer = client.get("/v1/search", params={"text": "a"})
        assert "0.2 seconds" in refused(answer, 503, "timeout")
        assert answer.headers["retry-after"] == "1"
        refused(client.get("/v1/search", params={"text": "a"}), 503, "overloaded")
    eventually(lambda: client.get("/v1/search", params={"text": "a"}).status_code == 200)


def test_queries_that_wait_go_together_and_one_spoils_nothing_for_the_others(serve, fake) -> None:
    client, answers, fake.unlucky = serve(max_batch=8), {}, "unlucky"

    def ask(user: str) -> None:
        answers[user] = client.post("/v1/recommend", json={"user_id": user, "k": 2})

    users = ["first", "user 1", "unlucky", "b", "c"]
    threads = [threading.Thread(target=ask, args=(user,)) for user in users]
    with fake.held():
        for thread in threads:
            thread.start()
        eventually(lambda: "tesserec_requests_under_way 5.0" in client.get("/metrics").text)
    for thread in threads:
        thread.join()
    assert 1 < max(fake.passes) <= 8
    assert {user: answer.status_code for user, answer in answers.items()} == {
        user: 500 if user == "unlucky" else 200 for user in users
    }
    assert ids(answers["user 1"]) == ["item 1", "item 2"]


def test_ready_once_it_has_answered(fake, lines) -> None:
    api = http_api(fake, Settings(run="r", store="s", open=True))
    cold = TestClient(api)
    assert cold.get("/healthz").json() == {"status": "ok"}
    answer = cold.get("/readyz")
    refused(answer, 503, "not_ready")
    assert answer.headers["retry-after"] == "1"
    with TestClient(api) as client:
        assert client.get("/readyz").json() == {
            "status": "ready",
            "run": fake.run,
            "items": 30,
            "users": 1,
            "recommenders": fake.recommenders,
        }
        fake.warning = "The rules are broken."
        assert client.get("/readyz").json()["warning"] == fake.warning


def test_not_ready_where_a_first_query_failed(fake, lines) -> None:
    fake.error = KeyError("user 1")
    with TestClient(http_api(fake, Settings(run="r", store="s", open=True))) as client:
        refused(client.get("/readyz"), 503, "not_ready")
        assert client.get("/healthz").status_code == 200
    failed = [line for line in lines() if "warm_up" in line]
    assert [line["warm_up"] for line in failed] == ["recommend"]
    assert "user 1" not in json.dumps(failed)


@pytest.mark.parametrize("error", [unavailable("timeout", "The language model is cold."), StoreError("It is away.")])
def test_ready_once_what_was_away_has_come(fake, monkeypatch, error) -> None:
    monkeypatch.setattr(warm, "PAUSE_S", 0.01)
    fake.error = error
    with TestClient(http_api(fake, Settings(run="r", store="s", open=True))) as client:
        refused(client.get("/readyz"), 503, "not_ready")
        fake.error = None
        eventually(lambda: client.get("/readyz").status_code == 200)


def test_metrics_by_route_recommender_and_run(client, serve, fake) -> None:
    client.post("/v1/recommend", json={"user_id": "user 1", "k": 3})
    client.get("/v1/items/none")
    client.get("/nowhere")
    text = client.get("/metrics").text
    run = f'run="{fake.run}"'
    for sample in (
        f'tesserec_requests_total{{method="POST",route="/v1/recommend",{run},status="200"}} 1.0',
        f'tesserec_requests_total{{method="GET",route="/v1/items/{{item_id:any}}",{run},status="404"}} 1.0',
        f'tesserec_requests_total{{method="GET",route="none",{run},status="404"}} 1.0',
        f'tesserec_request_seconds_count{{route="/v1/recommend",{run}}} 1.0',
        f'tesserec_answers_total{{route="/v1/recommend",{run},source="history"}} 1.0',
        f'tesserec_answer_items_total{{recommender="content",route="/v1/recommend",{run}}} 3.0',
        f"tesserec_run_info{{{run}}} 1.0",
    ):
        assert sample in text.splitlines(), sample
    assert f'route="/v1/recommend",{run}' not in serve().get("/metrics").text  # each application counts its own


def test_browsers_of_other_sites_may_ask_only_where_they_are_named(serve) -> None:
    preflight = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    closed, named = serve(), serve(cors_origins=["https://shop.example"])
    assert "access-control-allow-origin" not in closed.get("/healthz", headers=preflight).headers
    assert closed.options("/v1/recommend", headers=preflight).status_code == 405
    answer = named.options("/v1/recommend", headers=preflight)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://shop.example")
    other = named.get("/healthz", headers={"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


def test_lines_go_to_standard_error_as_they_are(client, capsys, monkeypatch) -> None:
    for name in ("handlers", "propagate", "level"):
        monkeypatch.setattr(logs.LOG, name, getattr(logs.LOG, name))
    logs.to_stderr()
    client.get("/healthz")
    assert json.loads(capsys.readouterr().err)["route"] == "/healthz"
