"""Fetch over HTTP what strangers' catalogues name, without being led into the own network.

The address that is checked is the address that is connected to: the client's resolver does the check, so a name that
resolves to another address a moment later gains nothing.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import ipaddress
import re
import socket

import aiohttp
from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver
from fsspec.asyn import get_loop
from yarl import URL

from storage.media.limits import Limits, MediaError

REDIRECTS = 5
TRIES = 3
PAUSE = 0.2  # seconds before the second try, twice as long before the third
STALL = 10.0  # seconds without a byte
CHUNK = 1 << 16
WELL_FORMED = re.compile(r"(?:[\w.~:/?#\[\]@!$&'()*+,;=-]|%[\da-fA-F]{2})+", re.ASCII)  # RFC 3986, 2
UNICAST = ipaddress.ip_network("2000::/3")  # the rest of IPv6 is private, or IPv4 in disguise (mapped, NAT64)
TUNNELS = [ipaddress.ip_network(net) for net in ("2001::/23", "2002::/16")]  # Teredo and 6to4 carry IPv4 addresses


def fetch(url: str, limits: Limits, allow_private: tuple[str, ...] = ()) -> bytes:
    """Gets a URL's content, following redirects, each of which is checked like the first URL.

    Answers of 429 and 5xx, stalls and broken connections are tried again. Of encoded bodies (gzip, …) none is unpacked.

    Args:
        url: a URL of scheme http or https.
        limits: `max_bytes` bounds the body, `fetch_seconds` the whole, redirects and repetitions included.
        allow_private: `host:port` pairs, as URLs give them, whose addresses need not be public.

    Raises:
        MediaError: `scheme_not_allowed`, `private_address`, `too_many_redirects`, `missing`, `too_many_bytes`, or
            `unreadable`.
    """
    return asyncio.run_coroutine_threadsafe(_fetch(url, limits, allow_private), get_loop()).result()


def is_public(address: str) -> bool:
    """Tells whether an IP address is of the public internet: not loopback, private, link-local, shared, multicast, …"""
    ip = ipaddress.ip_address(address)
    if ip.version == 6 and (ip not in UNICAST or any(ip in net for net in TUNNELS)):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


async def _fetch(url: str, limits: Limits, allow_private: tuple[str, ...]) -> bytes:
    session = _session(allow_private)
    try:
        target = _url(url)
        async with asyncio.timeout(limits.fetch_seconds):
            for _ in range(REDIRECTS + 1):
                _check(target, allow_private)
                answer = await _request(session, target, limits)
                if isinstance(answer, bytes):
                    return answer
                target = target.join(_url(answer))
    except TimeoutError as error:
        raise MediaError("unreadable", f"fetching takes more than {limits.fetch_seconds:g} s") from error
    except ValueError as error:  # no URL at all, here or in a redirect
        raise MediaError("unreadable", f"no usable URL: {type(error).__name__}") from error
    raise MediaError("too_many_redirects", f"more than {REDIRECTS}")


def _url(text: str) -> URL:
    """Returns a URL as it is written, for a signature may count every character; one that is none is quoted."""
    return URL(text, encoded=WELL_FORMED.fullmatch(text) is not None)


def _check(url: URL, allow_private: tuple[str, ...]) -> None:
    """Checks what needs no name resolution: scheme, host, and an IP address given as host, which is never resolved."""
    if url.scheme not in ("http", "https"):
        raise MediaError("scheme_not_allowed", f"{url.scheme}:// in a redirect")
    if url.raw_host is None or url.raw_user is not None or url.raw_password is not None:
        raise MediaError("unreadable", "a URL needs a host, and no credentials")
    try:
        ipaddress.ip_address(url.raw_host)
    except ValueError:
        # A last label of digits makes it an IPv4 address in an odd spelling (WHATWG URL, 3.5): "127.1" is loopback.
        if re.fullmatch(r"\d+|0x[\da-f]*", url.raw_host.rstrip(".").rpartition(".")[2], re.IGNORECASE):
            raise MediaError("private_address", f"{url.raw_host} is no plain address") from None
        return
    _require_public(url.raw_host, url.raw_host, url.port, allow_private)


def _require_public(address: str, host: str, port: int | None, allow_private: tuple[str, ...]) -> None:
    name = f"[{host}]" if ":" in host else host
    if f"{name}:{port}".lower() not in allow_private and not is_public(address):
        raise MediaError("private_address", f"{name} lies in no public network")


class _PublicResolver(ThreadedResolver):
    """Names to addresses, all of them public; one that is not refuses the name."""

    def __init__(self, allow_private: tuple[str, ...]) -> None:
        super().__init__()
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await super().resolve(host, port, family)
        for result in found:
            _require_public(result["host"].split("%")[0], host, port, self._allow_private)
        return found


@functools.cache
def _session(allow_private: tuple[str, ...]) -> aiohttp.ClientSession:
    """Returns the process's session: connections are kept for the next picture of the same host."""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=_PublicResolver(allow_private)),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "tesserec", "Accept-Encoding": "identity"},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=STALL, sock_read=STALL),
    )
    atexit.register(lambda: asyncio.run_coroutine_threadsafe(session.close(), get_loop()).result(timeout=1))
    return session


async def _request(session: aiohttp.ClientSession, url: URL, limits: Limits) -> bytes | str:
    """Returns the body, or the address that a redirect points to."""
    problem = ""
    for attempt in range(TRIES):
        await asyncio.sleep(PAUSE * attempt)
        try:
            async with session.get(url, allow_redirects=False) as response:
                if response.status in (301, 302, 303, 307, 308) and "Location" in response.headers:
                    return response.headers["Location"]
                if response.status in (404, 410):
                    raise MediaError("missing", f"HTTP status {response.status}")
                if response.status == 200:
                    return await _body(response, limits)
                problem = f"HTTP status {response.status}"
                if response.status != 429 and response.status < 500:
                    break
        except aiohttp.InvalidURL:  # an address in disguise (http://2130706433/), among others
            raise
        except (aiohttp.ClientError, OSError) as error:  # their messages would repeat the URL, and what it signs
            problem = type(error).__name__
    raise MediaError("unreadable", f"{url.raw_host}: {problem}")


async def _body(response: aiohttp.ClientResponse, limits: Limits) -> bytes:
    content = bytearray()
    too_many = (response.content_length or 0) > limits.max_bytes
    while not too_many and (chunk := await response.content.read(CHUNK)):
        content += chunk
        too_many = len(content) > limits.max_bytes
    if too_many:
        raise MediaError("too_many_bytes", f"more than {limits.max_bytes} bytes")
    return bytes(content)
