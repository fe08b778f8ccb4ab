"""An S3 server on loopback: moto's, in a process of its own, that fails or is slow when it is told to.

`python -m tests.s3 PORT` serves; `s3_server()` starts that and yields what processes need to reach it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parents[1]
KEYS = {"AWS_ACCESS_KEY_ID": "tesserec", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
CODES = {503: "SlowDown", 500: "InternalError", 403: "AccessDenied", 401: "InvalidAccessKeyId"}


class Server(NamedTuple):
    """A running server; `environment` is what clients read its address and keys from."""

    url: str
    environment: dict[str, str]

    def bucket(self, name: str) -> str:
        """Make a bucket and return its URI."""
        self.put(f"s3://{name}", b"")
        return f"s3://{name}"

    def put(self, uri: str, content: bytes) -> None:
        """Write an object as another client would."""
        target = f"{self.url}/{uri.removeprefix('s3://')}"
        urllib.request.urlopen(urllib.request.Request(target, content, method="PUT"))  # noqa: S310 - our own

    def fail(self, status: int, times: int = 1 << 30, methods: str = "GET HEAD PUT POST DELETE") -> None:
        """Answer the next requests of some methods with an error; `times=0` ends it."""
        self._ask("/faults", {"status": status, "times": times, "methods": methods.split()})

    def slow(self, seconds: float) -> None:
        """Take so long before every PUT from now on; 0 ends it."""
        self._ask("/faults", {"put_seconds": seconds})

    def requests(self) -> dict[str, int]:
        """Count the requests so far, by method and status."""
        return dict(self._ask("/faults"))

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"{self.url}{path}", data) as answer:  # noqa: S310 - our own
            return json.load(answer)


@contextmanager
def s3_server() -> Iterator[Server]:
    """Run a server for the length of a block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "tests.s3", str(port)], cwd=REPOSITORY)
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + 60
    server = Server(url, {**KEYS, "AWS_ENDPOINT_URL": url})
    try:
        while True:
            try:
                server.requests()
                break
            except OSError:
                assert process.poll() is None, "the S3 server ended"
                assert time.monotonic() < until, "the S3 server did not come up"
                time.sleep(0.1)
        yield server
    finally:
        process.kill()
        process.wait()


class Faults:
    """WSGI middleware that delays an application or answers with errors in its place, as told by `POST /faults`."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application, self._lock = application, threading.Lock()
        self._fault: dict[str, Any] = {"times": 0, "put_seconds": 0}
        self._counts: dict[str, int] = {}

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        if environ["PATH_INFO"] == "/faults":
            if method == "POST":
                self._fault |= json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            start("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self._counts).encode()]
        with self._lock:
            faulty = self._fault["times"] > 0 and method in self._fault["methods"]
            self._fault["times"] -= faulty
            key = f"{method} {self._fault['status']}" if faulty else method
            self._counts[key] = self._counts.get(key, 0) + 1
        if method == "PUT":
            time.sleep(self._fault["put_seconds"])
        if not faulty:
            return self._application(environ, start)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        code = CODES[self._fault["status"]]
        start(f"{self._fault['status']} {code}", [("Content-Type", "application/xml")])
        return [] if method == "HEAD" else [f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()]


def serve(port: int) -> None:
    """Serve until killed."""
    import logging

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from moto.server import MotoRequestHandler
    from werkzeug.serving import run_simple

    os.environ["MOTO_PORT"] = str(port)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = Faults(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", port, application, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
