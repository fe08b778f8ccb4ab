from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from serving.api import http_api
from serving.pipeline import Pipeline, Query, Recommendation


@pytest.fixture(scope="module")
def pipeline(finished_run) -> Pipeline:
    return Pipeline(finished_run)


@pytest.fixture(scope="module")
def client(pipeline) -> TestClient:
    async def recommend(query: Query) -> Recommendation:
        return pipeline.recommend([query])[0]

    return TestClient(http_api(pipeline, recommend))


@pytest.mark.parametrize(
    "body", [{"user_id": "user 3"}, {"history": ["item 5", "?"], "k": 3}, {"history": []}, {"user_id": "new", "k": 100}]
)
def test_an_answer_is_the_recommenders(client, pipeline, body) -> None:
    answer = client.post("/v1/recommend", json=body)
    assert answer.status_code == 200
    assert answer.json() == pipeline.recommend([Query(**body)])[0]._asdict()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "give either user_id or history."),
        ({"user_id": "a", "history": []}, "give either user_id or history."),
        ({"user_id": "a", "k": 0}, "k: Input should be greater than or equal to 1."),
        ({"user_id": "a", "k": 101}, "k: Input should be less than or equal to 100."),
        ({"user_id": ""}, "user_id: String should have at least 1 character."),
        ({"history": ["a", 3]}, "history.1: Input should be a valid string."),
        ({"user_id": "a", "n": 3}, "n: Extra inputs are not permitted."),
        ({"history": ["a"] * 1001}, "history: List should have at most 1000 items after validation, not 1001."),
        ({"history": "a", "k": "x"}, "history: Input should be a valid list; k: Input should be a valid integer"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(client, body, sentence) -> None:
    answer = client.post("/v1/recommend", json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(sentence)


@pytest.mark.parametrize("content", [b"{", b"", b'{"history": ["\\ud800"]}', b"[]"])
def test_a_body_that_is_no_request(client, content) -> None:
    answer = client.post("/v1/recommend", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert list(answer.json()) == ["detail"]


def test_an_item(client, pipeline) -> None:
    answer = client.get("/v1/items/item 7")
    assert (answer.status_code, answer.json()) == (200, pipeline.item("item 7"))
    missing = client.get("/v1/items/item/7")
    assert (missing.status_code, missing.json()) == (404, {"detail": "There is no item 'item/7' in this catalogue."})


def test_health(client) -> None:
    assert client.get("/healthz").json() == {"status": "ok", "items": 60, "users": 31}
