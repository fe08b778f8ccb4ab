"""A chat endpoint on this machine that speaks the protocol of OpenAI-compatible servers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Reply = tuple[int, dict[str, str], str]


def said(text: str | None, reason: str = "stop") -> Reply:
    message = {"role": "assistant", "content": text}
    return 200, {}, json.dumps({"choices": [{"index": 0, "finish_reason": reason, "message": message}]})


def failed(status: int, message: str = "no", code: str | None = None, **headers: str) -> Reply:
    return status, headers, json.dumps({"error": {"message": message, "code": code}})


class Endpoint:
    """A chat endpoint on this machine; `answer` maps a request's body and its number to a reply."""

    def __init__(self) -> None:
        self.answer: Callable[[dict, int], Reply] = lambda body, number: said(text_of(body).upper())
        self.requests: list[dict] = []
        self.keys: list[str] = []
        self.times: list[float] = []
        self.clients: set = set()
        self.in_flight = self.most_in_flight = 0
        self._lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, headers, content = endpoint.take(body, self.headers["authorization"], self.client_address)
                self.send_response(status)
                for name, value in {"content-type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content.encode())))
                self.end_headers()
                self.wfile.write(content.encode())

            def log_message(self, *args) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *args: None  # clients that hang up are part of the play
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def take(self, body: dict, key: str, client: object) -> Reply:
        with self._lock:
            number = len(self.requests)
            self.requests.append(body)
            self.keys.append(key)
            self.times.append(time.monotonic())
            self.clients.add(client)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return self.answer(body, number)
        finally:
            with self._lock:
                self.in_flight -= 1


def text_of(body: dict) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


@contextmanager
def serving() -> Iterator[Endpoint]:
    """An endpoint that answers for the length of a block."""
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.server.shutdown()
        endpoint.server.server_close()
