from __future__ import annotations

import base64
import io
import logging
import pickle
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from models.chat.base import Failure, Prompt
from models.chat.openai import OpenAIChat
from storage.errors import UserError
from storage.identity import identity
from tests.models.chat.endpoint import Endpoint, failed, said, serving, text_of

KEY = "sk-very-secret-key-0123456789"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving() as endpoint:
        yield endpoint


@pytest.fixture(autouse=True)
def key(monkeypatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)


def chat(endpoint: Endpoint, **settings) -> OpenAIChat:
    return OpenAIChat("m", **{"base_url": endpoint.url, "api_key_env": "SOME_KEY", "max_retries": 0, **settings})


def test_answers_keep_the_prompts_order_and_prompts_in_flight_their_limit(endpoint):
    def slower_first(body, number):
        time.sleep(0.02 * (12 - int(text_of(body))) / 12)
        return said(f"answer {text_of(body)}")

    endpoint.answer = slower_first
    model = chat(endpoint, concurrency=3)
    for _ in range(2):
        assert model.complete([Prompt(str(n)) for n in range(12)]) == [f"answer {n}" for n in range(12)]
    assert 1 < endpoint.most_in_flight <= 3
    assert len(endpoint.clients) <= 3, "connections are used again, by the second call, too"


def test_a_prompt_travels_with_its_system_message_pictures_and_settings(endpoint):
    red = np.full((6, 8, 3), (200, 10, 10), np.uint8)
    chat(endpoint, seed=7, max_new_tokens=9).complete([Prompt("what is it", system="be brief", images=(red, red))])
    (body,) = endpoint.requests
    assert (body["model"], body["max_tokens"], body["temperature"], body["seed"]) == ("m", 9, 0.0, 7)
    system, user = body["messages"]
    assert system == {"role": "system", "content": "be brief"}
    assert [part["type"] for part in user["content"]] == ["image_url", "image_url", "text"]
    head, data = user["content"][0]["image_url"]["url"].split(",")
    assert head == "data:image/jpeg;base64"
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert seen.shape == red.shape
    assert np.abs(seen.astype(int) - red).max() < 10


def test_settings_of_none_are_left_to_the_server(endpoint):
    chat(endpoint, temperature=None).complete([Prompt("x")])
    assert not {"temperature", "seed"} & set(endpoint.requests[0])


def test_a_server_that_recovers_costs_nothing(endpoint):
    endpoint.answer = lambda body, number: failed(500) if number == 0 else said("well")
    assert chat(endpoint, max_retries=1).complete([Prompt("x")]) == ["well"]


def test_retry_after_is_heeded(endpoint):
    endpoint.answer = lambda body, number: failed(429, **{"retry-after": "1"}) if number == 0 else said("well")
    assert chat(endpoint, max_retries=1).complete([Prompt("x")]) == ["well"]
    assert endpoint.times[1] - endpoint.times[0] >= 1


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (failed(503), "model_unavailable"),
        (failed(429), "model_rate_limited"),
        (failed(400, "content policy"), "model_refused"),
        (failed(403), "model_refused"),
        (failed(413), "model_refused"),
        (said(""), "model_refused"),
        (said(None), "model_refused"),
        (said("half an ans", reason="content_filter"), "model_refused"),
        ((200, {}, "{ not json"), "model_unavailable"),
        ((200, {"content-type": "text/html"}, "<p>proxy</p>"), "model_unavailable"),
        ((200, {}, '{"choices": []}'), "model_unavailable"),
        ((200, {}, '{"choices": [{}]}'), "model_unavailable"),
    ],
    ids=[
        "500s",
        "429",
        "400",
        "403",
        "413",
        "empty",
        "null",
        "filtered",
        "bad json",
        "html",
        "no choice",
        "no message",
    ],
)
def test_a_prompt_without_an_answer_costs_itself_alone(endpoint, reply, code):
    endpoint.answer = lambda body, number: reply if text_of(body) == "bad" else said("fine")
    first, bad, last = chat(endpoint).complete([Prompt("a"), Prompt("bad"), Prompt("b")])
    assert (first, last) == ("fine", "fine")
    assert isinstance(bad, Failure)
    assert bad.code == code
    assert bad.detail


def test_a_stalling_server_times_out(endpoint):
    release = threading.Event()
    endpoint.answer = lambda body, number: (release.wait(10), said("late"))[1]
    started = time.monotonic()
    (failure,) = chat(endpoint, timeout_s=0.2).complete([Prompt("x")])
    release.set()
    assert failure.code == "model_timeout"
    assert time.monotonic() - started < 5


def test_a_server_that_is_not_there_is_unavailable(endpoint):
    endpoint.server.server_close()
    (failure,) = chat(endpoint, timeout_s=2).complete([Prompt("x")])
    assert failure.code == "model_unavailable"


@pytest.mark.parametrize(("status", "sentence"), [(401, "refuses the key"), (404, "does not serve m")])
def test_settings_that_cannot_work_end_the_call(endpoint, status, sentence):
    endpoint.answer = lambda body, number: (time.sleep(0.05), failed(status, f"got {KEY}"))[1]
    with pytest.raises(UserError, match=sentence) as caught:
        chat(endpoint, concurrency=2).complete([Prompt(str(n)) for n in range(50)])
    assert KEY not in str(caught.value)
    assert len(endpoint.requests) < 10, "prompts that wait are not sent"


@pytest.mark.parametrize(
    ("status", "code", "sentence"),
    [(400, "unsupported_value", "temperature to null"), (429, "insufficient_quota", "quota of its key is used up")],
)
def test_error_codes_of_settings_end_the_call(endpoint, status, code, sentence):
    endpoint.answer = lambda body, number: failed(status, "no", code)
    with pytest.raises(UserError, match=sentence):
        chat(endpoint).complete([Prompt("x")])


def test_the_key_is_sent_and_shown_nowhere(endpoint, caplog):
    caplog.set_level(logging.DEBUG)
    endpoint.answer = lambda body, number: failed(400, f"Authorization: Bearer {KEY}")
    model = chat(endpoint)
    model.load()
    (failure,) = model.complete([Prompt("x")])
    assert endpoint.keys == [f"Bearer {KEY}"]
    assert KEY not in failure.detail + repr(model) + caplog.text
    assert KEY.encode() not in pickle.dumps(model)


def test_only_a_hosted_endpoint_asks_for_a_key(endpoint, monkeypatch):
    monkeypatch.delenv("SOME_KEY")
    assert chat(endpoint).complete([Prompt("x")]) == ["X"]
    with pytest.raises(UserError, match="SOME_KEY"):
        OpenAIChat("m", api_key_env="SOME_KEY").load()
    with pytest.raises(UserError, match="no address"):
        OpenAIChat("m", base_url="localhost:8000").load()


def test_the_loaded_model_travels_to_another_process(endpoint):
    model = chat(endpoint)
    model.load()
    assert pickle.loads(pickle.dumps(model)) == model  # noqa: S301 - our own bytes


def test_answers_are_known_by_the_model_and_not_by_how_fast_it_is_asked(endpoint):
    faster = chat(endpoint, concurrency=9, timeout_s=1.0, max_retries=7, api_key_env="OTHER", base_url="http://b/v1")
    assert identity(faster) == identity(chat(endpoint))
    assert identity(chat(endpoint, temperature=1.0)) != identity(chat(endpoint))
