from __future__ import annotations

import json
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from models.embedding.openai import OpenAIEmbeddings
from storage.errors import UserError

KEY = "sk-very-secret"
WIDTH = 3
Answer = tuple[int, dict[str, str], str]


def vector(text: str) -> list[float]:
    return [float(len(text)), float(sum(map(ord, text)) % 97), 0.5]


def vectors(body: dict) -> Answer:
    """The rows come in another order than they were asked for, as the protocol allows."""
    rows = [{"object": "embedding", "index": n, "embedding": vector(text)} for n, text in enumerate(body["input"])]
    return 200, {}, json.dumps({"object": "list", "model": body["model"], "data": rows[::-1]})


def error(status: int, message: str = "no", **headers: str) -> Answer:
    return status, headers, json.dumps({"error": {"message": message}})


class Server:
    """Answers as `answer` says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answer: Callable[[dict], Answer] = vectors
        self.bodies: list[dict] = []
        self.keys: set[str] = set()
        self.busy = self.busiest = 0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    server.bodies.append(body)
                    server.keys.add(self.headers["authorization"])
                    server.busy += 1
                    server.busiest = max(server.busiest, server.busy)
                try:
                    status, headers, content = server.answer(body)
                finally:
                    with lock:
                        server.busy -= 1
                self.send_response(status)
                for name, value in {"content-type": "application/json", **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("content-length", str(len(content.encode())))
                self.end_headers()
                self.wfile.write(content.encode())

            def log_message(self, *args: object) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.handle_error = lambda *args: None  # a client that gave up closes its connection
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("TEST_KEY", KEY)
    running = Server()
    yield running
    running.close()


def model(server: Server, **settings) -> OpenAIEmbeddings:
    given = {"base_url": server.url, "api_key_env": "TEST_KEY", "timeout_s": 5.0, "max_retries": 1, **settings}
    return OpenAIEmbeddings("minilm", WIDTH, **given)


def in_turn(*answers: Callable[[dict], Answer]) -> Callable[[dict], Answer]:
    left = iter(answers)
    return lambda body: next(left)(body)


def test_vectors_come_in_the_order_of_the_texts_however_they_are_batched(server):
    texts = [f"text {'x' * n}" for n in range(23)]
    found = model(server, batch_size=5).embed_texts(texts)
    np.testing.assert_array_equal(found.vectors, np.array([vector(text) for text in texts], np.float32))
    assert (found.failures, found.vectors.dtype) == ({}, np.float32)
    assert sorted(len(body["input"]) for body in server.bodies) == [3, 5, 5, 5, 5]
    assert server.keys == {f"Bearer {KEY}"}
    assert model(server).embed_texts([]).vectors.shape == (0, WIDTH)


def test_no_more_requests_are_in_flight_than_allowed(server):
    server.answer = lambda body: (time.sleep(0.05), vectors(body))[1]
    model(server, batch_size=1, concurrency=3).embed_texts(["a"] * 12)
    assert server.busiest == 3


def test_what_may_pass_is_tried_again(server):
    server.answer = in_turn(lambda body: error(500), vectors)
    assert model(server).embed_texts(["a"]).failures == {}
    server.answer = in_turn(lambda body: error(429, retry_after="1"), vectors)
    started = time.monotonic()
    assert model(server).embed_texts(["a"]).failures == {}
    assert time.monotonic() - started >= 1


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (lambda body: error(503), "model_unavailable"),
        (lambda body: error(429), "model_rate_limited"),
        (lambda body: (200, {}, "{"), "model_unavailable"),
        (lambda body: (200, {"content-type": "text/html"}, "<p>Hello"), "model_unavailable"),
        (lambda body: (200, {}, '{"data": [{"index": 0, "embedding": [1, 2, 3]}]}'), "model_unavailable"),
        (lambda body: (200, {}, '{"data": [{"index": 0}, {"index": 1}]}'), "model_unavailable"),
    ],
    ids=["5xx", "429", "no json", "html", "too few", "no vector"],
)
def test_failures_that_are_no_texts_fault_take_the_request(server, answer, code):
    server.answer = answer
    found = model(server, max_retries=0).embed_texts(["a", "b"])
    assert {row: failure.code for row, failure in found.failures.items()} == {0: code, 1: code}
    assert (found.vectors == 0).all()
    assert len(server.bodies) == 1


def test_a_server_that_stalls_or_is_gone_costs_its_rows(server):
    server.answer = lambda body: (time.sleep(2), vectors(body))[1]
    found = model(server, timeout_s=0.2, max_retries=0).embed_texts(["a", "b"])
    assert [failure.code for failure in found.failures.values()] == ["model_timeout"] * 2
    gone = model(server, base_url="http://127.0.0.1:9/v1", max_retries=0).embed_texts(["a"])
    assert gone.failures[0].code == "model_unavailable"


def test_a_text_that_is_refused_costs_itself_alone(server):
    server.answer = lambda body: error(400, f"no {KEY}") if "bad" in " ".join(body["input"]) else vectors(body)
    texts = [f"text {n}" for n in range(20)]
    texts[3], texts[17] = "bad", "bad as well"
    found = model(server, batch_size=10).embed_texts(texts)
    assert {row: failure.code for row, failure in found.failures.items()} == {3: "model_refused", 17: "model_refused"}
    good = [row for row in range(20) if row not in (3, 17)]
    np.testing.assert_array_equal(found.vectors[good], np.array([vector(texts[row]) for row in good], np.float32))
    assert KEY not in str(found.failures)


@pytest.mark.parametrize(("status", "message"), [(401, "refuses the key"), (404, "does not serve minilm")])
def test_settings_that_no_text_can_mend_end_the_run(server, status, message):
    server.answer = lambda body: error(status, f"no {KEY}")
    with pytest.raises(UserError, match=message) as caught:
        model(server).embed_texts(["a", "b"])
    assert KEY not in str(caught.value)


def test_another_width_is_named(server):
    with pytest.raises(UserError, match="width 3, not 4"):
        OpenAIEmbeddings("m", 4, base_url=server.url).embed_texts(["a"])
    OpenAIEmbeddings("m", WIDTH, request_width=True, base_url=server.url).embed_texts(["a"])
    assert ["dimensions" in body for body in server.bodies] == [False, True]
    assert server.bodies[1]["dimensions"] == WIDTH


def test_long_texts_are_cut_and_pictures_refused(server):
    model(server, max_chars=5).embed_texts(["abcdefgh"])
    assert server.bodies[0]["input"] == ["abcde"]
    with pytest.raises(UserError, match="joint"):
        model(server).embed_texts(["a"], [None])


@pytest.mark.parametrize(
    ("base_url", "message"),
    [
        ("localhost:8000", "is no address"),
        ("http://[x", "is no address"),
        ("http://localhost:port/v1", "is no address"),
        ("http://user:pass@localhost/v1", "holds credentials"),
        ("https://api.openai.com/v1", "environment variable NO_SUCH_KEY"),
        ("https://eu.api.openai.com/v1", "environment variable NO_SUCH_KEY"),
    ],
)
def test_an_address_that_cannot_work_is_known_before_any_request(base_url, message):
    with pytest.raises(UserError, match=message):
        OpenAIEmbeddings("m", WIDTH, base_url=base_url, api_key_env="NO_SUCH_KEY").load()


def test_servers_of_ones_own_need_no_key_and_connections_stay_open(server):
    keyless = model(server, api_key_env="NO_SUCH_KEY")
    keyless.load()
    assert keyless.embed_texts(["a"]).failures == {}
    one, other = (OpenAIEmbeddings(name, WIDTH, base_url=server.url, api_key_env="NO_SUCH_KEY") for name in "ab")
    assert one.client() is other.client()


def test_settings_survive_pickling_and_hold_no_key(server):
    asked = model(server)
    asked.embed_texts(["a"])
    assert pickle.loads(pickle.dumps(asked)) == asked  # noqa: S301
    assert KEY.encode() not in pickle.dumps(asked)
    assert KEY not in repr(asked)
