from __future__ import annotations

import http.server
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from urllib.parse import parse_qs, quote, urlsplit

import aiohttp
import pytest

from storage.media import http as media_http
from storage.media.limits import Limits, MediaError
from storage.media.sources import Sources, read_limited, resolve

BODY = b"x" * 1000
QUICK = Limits(max_bytes=2000, fetch_seconds=5)


class Handler(http.server.BaseHTTPRequestHandler):
    """Paths say what to answer: /ok, /status/N, /to?url=…, /hops/N, and so on."""

    protocol_version = "HTTP/1.1"
    asked: Counter[str]
    connections: set[tuple[str, int]]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        name, _, argument = url.path[1:].partition("/")
        self.asked[url.path] += 1
        self.connections.add(self.client_address)
        getattr(self, f"answer_{name}")(argument, parse_qs(url.query))

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in {"content_length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def answer_ok(self, argument, query):
        self.answer(200, BODY)

    def answer_status(self, argument, query):
        self.answer(int(argument), b"no")

    def answer_recovers(self, argument, query):
        self.answer(200 if self.asked[self.path] == 3 else int(argument), BODY)

    def answer_to(self, argument, query):
        self.answer(302, location=query["url"][0])

    def answer_hops(self, argument, query):
        left = int(argument)
        self.answer(302, location=f"{left - 1}") if left else self.answer(200, BODY)

    def answer_path(self, argument, query):
        """Its own path and query, as they came."""
        self.answer(200, self.path.encode())

    def answer_endless(self, argument, query):
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        chunk = b"x" * 1000
        try:
            for _ in range(100_000):
                self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        except OSError:
            self.asked["hung up"] += 1
        self.close_connection = True

    def answer_huge(self, argument, query):
        self.answer(200, content_length=str(10**12))
        self.close_connection = True

    def answer_short(self, argument, query):
        self.answer(200, BODY, content_length="1500")
        self.close_connection = True

    def answer_gzip(self, argument, query):
        self.answer(200, b"\x1f\x8b raw", content_encoding="gzip")

    def answer_empty(self, argument, query):
        self.answer(200)

    def answer_drip(self, argument, query):
        """A header of one byte every tenth of a second."""
        try:
            for byte in b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 1000:
                self.wfile.write(bytes([byte]))
                time.sleep(0.1)
        except OSError:
            pass
        self.close_connection = True

    def answer_silence(self, argument, query):
        time.sleep(float(argument))
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


def serve(context: ssl.SSLContext | None = None) -> Iterator[http.server.ThreadingHTTPServer]:
    handler = type("Fresh", (Handler,), {"asked": Counter(), "connections": set()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    yield from serve()


@pytest.fixture
def here(server) -> str:
    return f"127.0.0.1:{server.server_port}"


def get(url: str, *allow_private: str, limits: Limits = QUICK) -> bytes:
    """As an operator does it."""
    sources = Sources(http=True, allow_private=allow_private)
    return read_limited(resolve(url, "/catalog", sources), limits, sources)


def code(url: str, *allow_private: str, limits: Limits = QUICK) -> str:
    with pytest.raises(MediaError) as caught:
        get(url, *allow_private, limits=limits)
    return caught.value.code


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        ("/path/a%2Fb%7Ec.jpg?sign=a%2Bb%3D%3D&x=%7E", "/path/a%2Fb%7Ec.jpg?sign=a%2Bb%3D%3D&x=%7E"),
        ("/path/a%2fb.jpg", "/path/a%2fb.jpg"),
        ("/path/a b|c.jpg", "/path/a%20b%7Cc.jpg"),
        ("/path/100%.jpg", "/path/100%25.jpg"),
    ],
)
def test_a_url_arrives_as_it_was_signed(server, here, sent, arrives):
    """What no URL may hold is quoted, of a redirect likewise."""
    assert get(f"http://{here}{sent}", here) == arrives.encode()
    assert get(f"http://{here}/to?url={quote(sent)}", here) == arrives.encode()


def test_the_case_of_a_host_says_nothing(server, here):
    there = here.replace("127.0.0.1", "localhost")
    assert get(f"http://{there.upper()}/ok", there) == BODY
    assert code(f"http://{there.upper()}/ok", here) == "private_address"


def test_content_comes_over_one_kept_connection(server, here):
    assert [get(f"http://{here}/ok", here) for _ in range(3)] == [BODY] * 3
    assert len(server.RequestHandlerClass.connections) == 1


@pytest.mark.parametrize(
    ("path", "expected", "asked"),
    [
        ("/status/404", "missing", 1),
        ("/status/410", "missing", 1),
        ("/status/403", "unreadable", 1),
        ("/status/206", "unreadable", 1),
        ("/status/500", "unreadable", 3),
        ("/status/429", "unreadable", 3),
        ("/short", "unreadable", 3),
        ("/huge", "too_many_bytes", 1),
        ("/endless", "too_many_bytes", 1),
        ("/empty", "empty", 1),
    ],
)
def test_answers_have_stable_codes_and_passing_faults_are_asked_again(server, here, path, expected, asked):
    assert code(f"http://{here}{path}", here) == expected
    assert server.RequestHandlerClass.asked[path] == asked


def test_a_server_that_recovers_costs_nothing(here):
    assert get(f"http://{here}/recovers/503", here) == BODY


def test_an_endless_body_is_left(server, here):
    assert code(f"http://{here}/endless", here) == "too_many_bytes"
    deadline = time.monotonic() + 5
    while not server.RequestHandlerClass.asked["hung up"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.RequestHandlerClass.asked["hung up"]


def test_encoded_bodies_are_not_unpacked(here):
    assert get(f"http://{here}/gzip", here) == b"\x1f\x8b raw"


@pytest.mark.parametrize("path", ["/drip", "/silence/3"])
def test_slow_servers_are_left_when_the_time_is_up(here, path):
    start = time.monotonic()
    assert code(f"http://{here}{path}", here, limits=Limits(fetch_seconds=0.5)) == "unreadable"
    assert time.monotonic() - start < 2


def test_hosts_that_do_not_answer_are_asked_again():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        start = time.monotonic()
        assert code(f"http://127.0.0.1:{port}/a", f"127.0.0.1:{port}") == "unreadable"
        assert time.monotonic() - start >= 3 * media_http.PAUSE


def test_redirects_are_followed_five_times(here):
    assert get(f"http://{here}/hops/5", here) == BODY
    assert code(f"http://{here}/hops/6", here) == "too_many_redirects"
    assert code(f"http://{here}/to?url=/to", here) == "unreadable"  # the second one points nowhere


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("http://127.0.0.1:1/a", "private_address"),
        ("//127.0.0.1:1/a", "private_address"),
        ("http://169.254.169.254/latest/meta-data/", "private_address"),
        ("http://localhost:1/a", "private_address"),
        ("http://[::1]/a", "private_address"),
        ("file:///etc/passwd", "scheme_not_allowed"),
        ("ftp://example.com/a", "scheme_not_allowed"),
        ("data:image/png;base64,AAAA", "scheme_not_allowed"),
        ("http://ann:secret@example.com/a", "unreadable"),
        ("http://[x", "unreadable"),
    ],
)
def test_every_hop_is_checked(server, here, target, expected):
    assert code(f"http://{here}/to?url={target}", here) == expected
    assert sum(server.RequestHandlerClass.asked.values()) == 1


def test_a_name_is_connected_to_at_the_address_that_was_checked(server, monkeypatch):
    """The second answer of the name server would lead inside."""
    answers = iter(["93.184.215.14", "127.0.0.1"])
    asked, port = [], server.server_port

    def getaddrinfo(host, *args, **kwargs):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    connected = []

    async def sock_connect(self, sock, address):
        connected.append(address[0])
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(type(media_http.get_loop()), "sock_connect", sock_connect)
    monkeypatch.setattr(media_http, "TRIES", 1)
    assert code(f"http://rebinds.example:{port}/ok") == "unreadable"
    assert (asked, connected) == (["rebinds.example"], ["93.184.215.14"])
    assert code(f"http://inside.example:{port}/ok") == "private_address"
    assert connected == ["93.184.215.14"]


def test_one_private_address_among_public_ones_refuses_a_name(monkeypatch):
    def getaddrinfo(host, port, *args, **kwargs):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ("93.184.215.14", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert code("http://mixed.example/a") == "private_address"


def test_a_private_host_is_allowed_by_name_and_port(here):
    port = here.split(":")[1]
    assert get(f"http://localhost:{port}/ok", f"localhost:{port}") == BODY
    assert code(f"http://localhost:{port}/ok", here) == "private_address"
    assert code(f"http://{here}/ok", f"127.0.0.1:{int(port) + 1}") == "private_address"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",  # noqa: S104 - not bound to
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
        "198.18.0.1",
        "::",
        "::1",
        "fe80::1",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "2001:db8::1",
        "::7f00:1",
    ],
)
def test_addresses_that_are_not_public(address):
    assert not media_http.is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.215.14", "2606:4700::6810:84e5", "2a00:1450:4001::1"])
def test_addresses_that_are_public(address):
    assert media_http.is_public(address)


def test_certificates_are_checked_against_the_name(tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate]
    subprocess.run([*command, *subject], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    monkeypatch.setattr(media_http, "TRIES", 1)
    for server in serve(context):
        names = [f"{host}:{server.server_port}" for host in ("localhost", "127.0.0.1")]
        assert [code(f"https://{name}/ok", *names) for name in names] == ["unreadable"] * 2  # nobody vouches for it
        monkeypatch.setattr(
            aiohttp.connector, "_SSL_CONTEXT_VERIFIED", ssl.create_default_context(cafile=str(certificate))
        )
        assert get(f"https://{names[0]}/ok", *names) == BODY
        assert code(f"https://{names[1]}/ok", *names) == "unreadable"
