from __future__ import annotations

import base64
import dataclasses
import io
import json
import uuid
from itertools import pairwise

import pytest
from PIL import Image

from serving.filters import MAX_CONDITIONS, MAX_DEPTH
from serving.query import Query
from serving.settings import MAX_IDS
from tests.serving.api.fake import ITEMS


def refused(answer, status: int, code: str) -> str:
    """The message of an error that has the one shape."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    error = answer.json()["error"]
    assert list(error) == ["code", "message", "request_id"]
    assert (error["code"], error["request_id"]) == (code, answer.headers["x-request-id"])
    assert "Traceback" not in answer.text
    return error["message"]


def ids(answer) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


@pytest.mark.parametrize(
    ("body", "query"),
    [
        ({"user_id": "user 1"}, Query(user_id="user 1")),
        ({"history": ["item 5", "?"], "k": 3}, Query(history=["item 5", "?"], k=3)),
        ({"user_id": "a", "history": [], "seen_after_days": 30}, Query(user_id="a", history=[], seen_after=30)),
        (
            {"user_id": "a", "recommenders": ["popularity"], "explain": True, "exclude": ["b"], "negative": ["c"]},
            Query(user_id="a", recommenders=("popularity",), explain=True, exclude=("b",), negative=("c",)),
        ),
    ],
)
def test_a_body_becomes_a_query(client, fake, body, query) -> None:
    answer = client.post("/v1/recommend", json=body)
    assert fake.queries == [query]
    expected = dataclasses.asdict(fake.recommend([query])[0])
    assert expected.pop("seen") is None  # of a picture alone
    assert expected.pop("since") == 0  # for those who keep the answer
    assert fake.queries[0].draw == answer.json()["recommendation_id"]
    assert {name: answer.json()[name] for name in expected} == expected
    assert answer.json()["run"] == fake.run
    assert uuid.UUID(answer.json()["recommendation_id"]).version == 4


def test_a_filter_reaches_the_run(client, fake) -> None:
    where = {"all": [{"attribute": "colour", "in": ["red"]}, {"not": {"attribute": "price", "at_least": 50}}]}
    assert client.post("/v1/recommend", json={"user_id": "a", "where": where}).status_code == 200
    assert fake.queries[0].where.model_dump(by_alias=True, exclude_none=True, mode="json") == where


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "give user_id, or history (an empty one for a visitor of whom nothing is known)."),
        ({"user_id": "a", "k": 0}, "k: Input should be greater than or equal to 1."),
        ({"user_id": "a", "k": 101}, "k: Input should be less than or equal to 100."),
        ({"user_id": ""}, "user_id: String should have at least 1 character."),
        ({"history": ["a", 3]}, "history.1: Input should be a valid string."),
        ({"user_id": "a", "n": 3}, "n: Extra inputs are not permitted."),
        ({"history": ["a"] * (MAX_IDS + 1)}, f"history: List should have at most {MAX_IDS} items"),
        ({"history": [1] * 9}, "history.0: Input should be a valid string; "),
        ({"user_id": "a", "recommenders": ["x"]}, "recommenders: there is no 'x'; choose among content, popularity."),
        ({"user_id": "a", "seen_after_days": -1}, "seen_after_days: Input should be greater than or equal to 0."),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(client, body, sentence) -> None:
    message = refused(client.post("/v1/recommend", json=body), 422, "invalid")
    assert message.startswith(sentence)
    assert len(message) < 1_000


NOT = {"attribute": "a", "in": ["b"]}
for _ in range(MAX_DEPTH):
    NOT = {"not": NOT}


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        (NOT, f"at most {MAX_DEPTH} deep"),
        ({"any": [{"all": [{"attribute": "a", "in": ["b"]}] * 40}] * 2}, f"at most {MAX_CONDITIONS} parts"),
        ({"attribute": "a"}, "either in, or at_least"),
        ({"attribute": "a", "at_least": float("nan")}, "finite number"),
        ([], "where"),
        ({"all": {"all": []}}, "where"),
    ],
)
def test_a_filter_is_bounded_over_its_whole_tree(client, where, sentence) -> None:
    body = json.dumps({"user_id": "a", "where": where})
    answer = client.post("/v1/recommend", content=body, headers={"content-type": "application/json"})
    assert sentence in refused(answer, 422, "invalid")


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 422),
        (b"", 422),
        (b"[]", 422),
        (b'{"history": ["\\ud800"]}', 422),
        (b'{"\\ud800": 1, "user_id": "a"}', 422),
        (b'{"user_id": "a", "k": 1e400}', 422),
        (b'{"user_id": "a", "seen_after_days": Infinity}', 422),
        (b"\xc3\x28", 400),
        (b"[" * 100_000, 400),
        (b'{"user_id": "a", "where": ' + b'{"not": ' * 300 + b"{}" + b"}" * 301, 422),
    ],
)
def test_a_body_that_is_no_request(client, content, status) -> None:
    answer = client.post("/v1/recommend", content=content, headers={"content-type": "application/json"})
    refused(answer, status, "invalid" if status == 422 else "bad_request")


def test_pages_repeat_nothing_even_when_the_history_has_changed(client, fake) -> None:
    body, pages = {"user_id": "user 1", "k": 10}, []
    for _ in range(3):
        answer = client.post("/v1/recommend", json=body)
        pages.append(ids(answer))
        body["cursor"] = answer.json()["cursor"]
        fake.liked["user 1"] = [pages[-1][0]]  # and what was liked before may come back
    assert [len(page) for page in pages] == [10, 10, 10]
    for before, after in pairwise(pages):
        assert not set(before) & set(after)
    assert len(set().union(*pages)) == 30
    last = client.post("/v1/recommend", json=body)
    assert (ids(last), last.json()["cursor"]) == ([], None)


def test_a_short_page_is_not_the_last_one(client, fake, monkeypatch) -> None:
    whole = fake.recommend
    monkeypatch.setattr(
        fake, "recommend", lambda queries: whole([dataclasses.replace(query, k=2) for query in queries])
    )
    answer = client.post("/v1/recommend", json={"user_id": "a", "k": 10})
    more = client.post("/v1/recommend", json={"user_id": "a", "k": 10, "cursor": answer.json()["cursor"]})
    assert len({*ids(answer), *ids(more)}) == 4


def test_a_cursor_of_another_run_is_stale(client, fake) -> None:
    cursor = client.post("/v1/recommend", json={"user_id": "a"}).json()["cursor"]
    fake.run = "fake:other"
    answer = client.post("/v1/recommend", json={"user_id": "a", "cursor": cursor})
    assert "another run" in refused(answer, 409, "stale_cursor")


@pytest.mark.parametrize("damaged", ["", "a", "%%", "é", "AAAA" * 9])
def test_a_damaged_cursor(client, damaged) -> None:
    answer = client.post("/v1/recommend", json={"user_id": "a", "cursor": damaged})
    assert "damaged" in refused(answer, 422, "bad_cursor")


def test_rank(client) -> None:
    body = {"user_id": "user 1", "items": ["item 9", "item 10", "?", "item 9"]}
    answer = client.post("/v1/rank", json=body)
    assert ids(answer) == ["item 10", "item 9"]
    assert answer.json()["unknown"] == ["?"]
    refused(client.post("/v1/rank", json={"user_id": "a", "items": []}), 422, "invalid")
    refused(client.post("/v1/rank", json={"items": ["item 1"]}), 422, "invalid")


def encoded(size: tuple[int, int], kind: str = "PNG") -> str:
    content = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(content, kind)
    return base64.b64encode(content.getvalue()).decode()


def test_similar_to_items_a_text_or_a_picture(client, fake) -> None:
    assert ids(client.post("/v1/similar", json={"items": ["item 0"], "k": 2})) == ["item 1", "item 2"]
    assert ids(client.post("/v1/similar", json={"text": "red", "k": 1})) == ["item 0"]
    assert fake.asked["text"] == "red"
    assert len(ids(client.post("/v1/similar", json={"picture": encoded((600, 300)), "k": 4}))) == 4
    picture = Image.open(io.BytesIO(fake.asked["picture"]))
    assert (picture.format, picture.size) == ("PNG", (384, 192))


@pytest.mark.parametrize("body", [{}, {"items": []}, {"items": ["a"], "text": "b"}, {"text": ""}])
def test_similar_takes_one_of_three(client, body) -> None:
    refused(client.post("/v1/similar", json=body), 422, "invalid")


def test_pictures_are_bounded(serve) -> None:
    client = serve(max_picture_bytes=20_000, max_picture_pixels=10_000)

    def post(picture: str):
        return client.post("/v1/similar", json={"picture": picture})

    assert post(encoded((100, 100))).status_code == 200
    assert "101 x 100" in refused(post(encoded((101, 100))), 422, "bad_picture")
    assert "base64" in refused(post("no base64!"), 422, "bad_picture")
    assert "base64" in refused(post("é"), 422, "bad_picture")
    assert "picture" in refused(post(base64.b64encode(b"no picture").decode()), 422, "bad_picture")
    assert "20,000" in refused(post(base64.b64encode(bytes(20_001)).decode()), 413, "too_large")


def test_search(client, fake) -> None:
    assert ids(client.get("/v1/search", params={"text": "red", "k": 2})) == ITEMS[:2]
    where = {"attribute": "colour", "in": ["red"]}
    assert ids(client.post("/v1/search", json={"text": "red", "k": 1, "where": where})) == ITEMS[:1]
    assert fake.asked["where"].attribute == "colour"
    refused(client.get("/v1/search"), 422, "invalid")
    refused(client.get("/v1/search", params={"text": "a" * 1001}), 422, "invalid")
    refused(client.post("/v1/search", json={"k": 1}), 422, "invalid")


def test_what_a_run_cannot_answer_it_says(client) -> None:
    answer = client.get("/v1/search", params={"text": "unanswerable"})
    assert refused(answer, 422, "unanswerable") == "This run has no text encoder: search needs one."


def test_no_number_of_json_is_no_number(client, fake) -> None:
    fake.scores = float("nan"), float("inf")
    found = client.get("/v1/search", params={"text": "a"}).json()["items"][0]
    assert (found["score"], found["probability"]) == (None, None)
    assert client.get("/v1/quality").json()["metrics"] == {"auc": 0.7, "ndcg": None}


def test_an_item_and_its_picture(client, fake) -> None:
    assert client.get("/v1/items/item 7").json() == {"run": fake.run, **fake.item("item 7")}
    assert "'item/7'" in refused(client.get("/v1/items/item/7"), 404, "not_found")
    answer = client.get("/v1/items/item 1/picture")
    assert (answer.headers["content-type"], answer.content[:2]) == ("image/jpeg", b"\xff\xd8")
    refused(client.get("/v1/items/item 2/picture"), 404, "not_found")


def test_the_tree_of_semantic_ids(client, fake) -> None:
    below = {"code": 2, "items": 30, "examples": ITEMS[:3]}
    assert client.get("/v1/tree").json() == {"run": fake.run, "prefix": [], "codes": [below]}
    assert client.get("/v1/tree?prefix=1").json()["codes"] == [below]
    assert client.get("/v1/tree?prefix=1&prefix=2").json() == {"run": fake.run, "prefix": [1, 2], "codes": []}
    refused(client.get("/v1/tree?prefix=-1"), 422, "invalid")
    refused(client.get("/v1/tree?prefix=a"), 422, "invalid")
    refused(client.get("/v1/tree?" + "prefix=1&" * 17), 422, "invalid")


def test_what_is_not_there(client) -> None:
    refused(client.get("/v1/nothing"), 404, "not_found")
    refused(client.get("/v1/recommend"), 405, "method_not_allowed")


def test_every_request_and_answer_of_the_document_has_an_example(client) -> None:
    document = client.get("/openapi.json").json()
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Request") or name in ("Items", "Page", "Item", "Tree", "Quality", "Ready"):
            assert schema["examples"], name
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].split("/")[-1]
                example = document["components"]["schemas"][schema]["examples"][0]
                assert client.request(method, path.format(item_id=ITEMS[0]), json=example).status_code == 200, path
