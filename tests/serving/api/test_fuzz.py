"""Whatever is sent, the service answers, and fails for no one."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks

from serving.api.routes import http_api
from serving.settings import Settings
from tests.serving.api.fake import FakeRun

SETTINGS = Settings(run="fake", store="s", open=True)
DOCUMENT = schemathesis.openapi.from_asgi("/openapi.json", http_api(FakeRun(), SETTINGS))
DESCRIBED = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]
OPERATIONS = [found.ok() for found in DOCUMENT.get_all_operations()]
TAKING = [operation for operation in OPERATIONS if operation.label.startswith("POST") or operation.query]
ALLOWED = [(operation, GenerationMode.POSITIVE) for operation in OPERATIONS]
OTHERS = [(operation, GenerationMode.NEGATIVE) for operation in TAKING]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner, max_size=5),
    max_leaves=20,
)
NAMES = ("user_id", "history", "k", "cursor", "exclude", "where", "recommenders", "items", "text", "picture")
bodies = st.dictionaries(st.sampled_from(NAMES), values, max_size=5) | values


@pytest.fixture(scope="module")
def client():
    with TestClient(http_api(FakeRun(), SETTINGS), raise_server_exceptions=False) as client:
        yield client


@given(body=bodies, route=st.sampled_from(["recommend", "rank", "similar", "search"]))
@settings(max_examples=100)
def test_any_json(client, body, route) -> None:
    headers = {"content-type": "application/json"}
    answer = client.post(f"/v1/{route}", content=json.dumps(body).encode(), headers=headers)
    assert answer.status_code in (200, 400, 422), answer.text


@given(content=st.binary(max_size=200), kind=st.sampled_from(["application/json", "text/plain", "multipart/form-data"]))
@settings(max_examples=50)
def test_any_bytes(client, content, kind) -> None:
    answer = client.post("/v1/recommend", content=content, headers={"content-type": kind})
    assert answer.status_code in (400, 422), answer.text


def send(operation, mode: GenerationMode, cases: int) -> int:
    """Sends requests that the document allows, or others; returns how many. Nothing is shrunk: it takes minutes."""
    sent = 0

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=cases, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    def each(case) -> None:
        nonlocal sent
        sent += 1
        answer = case.call()
        assert answer.status_code < 500 or answer.status_code == 503, answer.text
        case.validate_response(answer, checks=DESCRIBED)

    with suppress(RecursionError):  # of schemathesis, over filters that hold filters; the service's own is a status 500
        each()
    return sent


@pytest.mark.parametrize(("operation", "mode"), ALLOWED + OTHERS, ids=lambda value: getattr(value, "label", str(value)))
def test_requests_that_the_document_allows_and_others(operation, mode) -> None:
    assert send(operation, mode, cases=8)


@pytest.mark.soak
def test_thousands_of_them() -> None:
    sent = sum(send(operation, mode, cases=300) for operation, mode in ALLOWED + OTHERS)
    assert sent >= 2_000
