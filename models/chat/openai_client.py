"""What callers of an OpenAI-compatible endpoint share: a client, bounded concurrency, and what an error means."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from models.chat.base import Failure
from storage.errors import UserError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

OPENAI_URL = "https://api.openai.com/v1"
UNREADABLE = (LookupError, ValueError, TypeError, AttributeError)  # the package checks no shapes
SETTINGS = {  # error codes of which no row is to blame
    "insufficient_quota": "the quota of its key is used up, so raise it and run again",
    "unsupported_parameter": "it does not take max_tokens or seed, so choose another model or server",
    "unsupported_value": "it does not take the temperature, so set temperature to null",
}
Input = TypeVar("Input")
Output = TypeVar("Output")


def client(base_url: str, api_key_env: str, timeout_s: float, max_retries: int) -> AsyncOpenAI:
    """The process's client of an endpoint, made once: it keeps connections open. Await it inside `gather` alone.

    It tries again by itself what may pass (timeouts, refused connections, 408, 409, 429, 5xx), with exponential
    backoff and jitter or after the server's Retry-After.

    Args:
        base_url: the address up to and with `/v1`.
        api_key_env: the environment variable that holds the key; an endpoint other than OpenAI's own may need none.
        timeout_s: seconds that one attempt may be silent.
        max_retries: attempts after the first.

    Raises:
        UserError: the address is none, holds credentials, or belongs to OpenAI and the variable is not set.
    """
    try:
        address = urlsplit(base_url)
        host, port = address.hostname or "", address.port or 0
    except ValueError:  # "http://[x" or a port that is no number
        host, port = "", 0
    if not host or address.scheme not in ("http", "https") or not 0 <= port < 65536:
        raise UserError("base_url is no address of an endpoint: write it as http://HOST:PORT/v1.")
    if "@" in address.netloc:
        raise UserError(f"base_url holds credentials: take them out, and put the key into {api_key_env}.")
    key = _key(api_key_env)
    if not key and f".{host}".endswith(".openai.com"):
        raise UserError(f"{base_url} needs a key: put it into the environment variable {api_key_env}.")
    return _client(base_url, key or "none", timeout_s, max_retries)


def gather(work: Callable[[Input], Awaitable[Output]], inputs: Sequence[Input], concurrency: int) -> list[Output]:
    """Await `work` for every input, at most `concurrency` at a time; results in the order of the inputs.

    The first exception cancels what is under way and is raised.
    """

    async def all_of_them() -> list[Output]:
        slots = asyncio.Semaphore(concurrency)

        async def one(value: Input) -> Output:
            async with slots:
                return await work(value)

        tasks = [asyncio.ensure_future(one(value)) for value in inputs]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    return _run(all_of_them())


def failure_of(error: Exception, *, model: str, base_url: str, api_key_env: str) -> Failure:
    """What an exception of the client, or of the reading of its answer, means for the row that was asked for.

    Returns:
        Failure: `model_timeout`, `model_rate_limited`, `model_unavailable` (no connection, 5xx, an answer that cannot
            be read) or `model_refused` (any other status: the endpoint answers, but not to this input).

    Raises:
        UserError: the endpoint refuses the key (401), does not serve the model (404), has no quota left for it or does
            not take a parameter. A 403 is the row's: gateways answer so to single inputs, too.
        Exception: `error` itself, where it is none of the client's.
    """
    import openai

    if isinstance(error, openai.APIStatusError) and error.code in SETTINGS:
        raise UserError(f"{base_url} cannot answer for {model}: {SETTINGS[error.code]}.") from None
    if isinstance(error, openai.AuthenticationError):
        message = f"{base_url} refuses the key for {model}: put a valid one into {api_key_env}."
        raise UserError(message) from None  # the cause holds the request, and with it the key
    if isinstance(error, openai.NotFoundError):
        raise UserError(f"{base_url} does not serve {model}: name a model and a base_url that it has.") from None
    if isinstance(error, openai.APITimeoutError):
        return Failure("model_timeout", f"{model} did not answer in time")
    if isinstance(error, openai.APIConnectionError):
        return Failure("model_unavailable", f"{base_url} cannot be reached")
    if isinstance(error, openai.APIStatusError):
        codes = {408: "model_timeout", 429: "model_rate_limited"}
        code = codes.get(error.status_code, "model_unavailable" if error.status_code >= 500 else "model_refused")
        return Failure(code, _detail(f"{model}: {error.message}", api_key_env))
    if isinstance(error, (openai.APIError, *UNREADABLE)):
        detail = f"the answer of {model} cannot be read: {type(error).__name__}: {error}"
        return Failure("model_unavailable", _detail(detail, api_key_env))
    raise error


def _key(api_key_env: str) -> str:
    return os.environ.get(api_key_env, "").strip()


def _detail(text: str, api_key_env: str) -> str:
    """Endpoints may repeat what they were sent, at any length."""
    key = _key(api_key_env)
    return (text.replace(key, "***") if key else text)[:300]


@functools.cache
def _client(base_url: str, key: str, timeout_s: float, max_retries: int) -> AsyncOpenAI:
    from openai import AsyncOpenAI, Timeout

    timeout = Timeout(timeout_s, connect=min(5.0, timeout_s))
    return AsyncOpenAI(api_key=key, base_url=base_url, timeout=timeout, max_retries=max_retries)


def _run(work: Coroutine[Any, Any, Output]) -> Output:
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    finally:
        future.cancel()


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """One loop per process, in a thread of its own: open connections belong to the loop that opened them."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="openai-client", daemon=True).start()
    return loop
