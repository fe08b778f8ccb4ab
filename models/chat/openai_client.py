"""What backends behind an OpenAI-compatible endpoint share: settings, client, concurrency, and what errors mean."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic_core import PydanticCustomError

from models.chat.base import Failure
from models.common.settings import Backend
from storage.errors import UserError
from storage.identity import speed

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


def _variable_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*", name):  # and never say what was given, which may be the key itself
        raise PydanticCustomError("variable", "must be the name of an environment variable, not a key")
    return name


def _without_credentials(url: str) -> str:
    if "@" in url:
        raise PydanticCustomError("credentials", "must hold no credentials; put the key into api_key_env's variable")
    return url


@dataclass(frozen=True)
class Endpoint(Backend):
    """A model behind an OpenAI-compatible endpoint.

    The client tries again by itself what may pass (timeouts, refused connections, 408, 409, 429, 5xx), with exponential
    backoff and jitter or after the server's Retry-After. The key itself is never a setting: a definition is written
    into every run.

    Attributes:
        model: the name under which the endpoint serves it.
        base_url: address of the endpoint, up to and with `/v1`; it is no part of the identity of results, since the
            same model is taken to answer the same wherever it is served.
        api_key_env: environment variable that holds the key; an endpoint other than OpenAI's own may need none.
        timeout_s: seconds that one attempt may be silent.
        max_retries: attempts after the first.
        concurrency: requests in flight.
    """

    model: str
    _: KW_ONLY
    base_url: Annotated[str, AfterValidator(_without_credentials)] = speed(OPENAI_URL)
    api_key_env: Annotated[str, AfterValidator(_variable_name)] = speed("OPENAI_API_KEY")
    timeout_s: PositiveFloat = speed(60.0)
    max_retries: NonNegativeInt = speed(4)
    concurrency: PositiveInt = speed(16)

    backend = "openai"
    place = "remote"

    def check(self) -> None:
        """Opens the client; see `client`."""
        self.client()

    def load(self) -> None:
        """Opens the client; see `client`."""
        self.client()

    def client(self) -> AsyncOpenAI:
        """Return the process's client of the endpoint, made once: it keeps connections open. Await it in `gather` only.

        Raises:
            UserError: base_url is no address or holds credentials, or it is OpenAI's and the variable is not set.
        """
        try:
            address = urlsplit(self.base_url)
            host, port = address.hostname or "", address.port or 0
        except ValueError:  # "http://[x" or a port that is no number
            host, port = "", 0
        if not host or address.scheme not in ("http", "https") or not 0 <= port < 65536:
            raise UserError("base_url is no address of an endpoint: write it as http://HOST:PORT/v1.")
        if "@" in address.netloc:
            raise UserError(f"base_url holds credentials: take them out, and put the key into {self.api_key_env}.")
        key = self._key()
        if not key and f".{host}".endswith(".openai.com"):
            raise UserError(f"{self.base_url} needs a key: put it into the environment variable {self.api_key_env}.")
        return _client(self.base_url, key or "none", self.timeout_s, self.max_retries)

    def failure(self, error: Exception) -> Failure:
        """Translates an exception of the client, or of the reading of its answer, into the failure of the request.

        Returns:
            Failure: `model_timeout`, `model_rate_limited`, `model_unavailable` (no connection, 5xx, an answer that
                cannot be read) or `model_refused` (any other status: the endpoint answers, but not to this input).

        Raises:
            UserError: the endpoint refuses the key (401), does not serve the model (404), has no quota left for it or
                does not take a parameter. A 403 concerns one input: gateways answer so to single inputs, too.
            Exception: `error` itself, where it is none of the client's.
        """
        import openai

        if isinstance(error, openai.APIStatusError) and error.code in SETTINGS:
            raise UserError(f"{self.base_url} cannot answer for {self.model}: {SETTINGS[error.code]}.") from None
        if isinstance(error, openai.AuthenticationError):
            message = f"{self.base_url} refuses the key for {self.model}: put a valid one into {self.api_key_env}."
            raise UserError(message) from None  # the cause holds the request, and with it the key
        if isinstance(error, openai.NotFoundError):
            raise UserError(
                f"{self.base_url} does not serve {self.model}: name a model and a base_url that it has."
            ) from None
        if isinstance(error, openai.APITimeoutError):
            return Failure("model_timeout", f"{self.model} did not answer in time")
        if isinstance(error, openai.APIConnectionError):
            return Failure("model_unavailable", f"{self.base_url} cannot be reached")
        if isinstance(error, openai.APIStatusError):
            codes = {408: "model_timeout", 429: "model_rate_limited"}
            code = codes.get(error.status_code, "model_unavailable" if error.status_code >= 500 else "model_refused")
            return Failure(code, self._detail(f"{self.model}: {error.message}"))
        if isinstance(error, (openai.APIError, *UNREADABLE)):
            detail = f"the answer of {self.model} cannot be read: {type(error).__name__}: {error}"
            return Failure("model_unavailable", self._detail(detail))
        raise error

    def _key(self) -> str:
        return os.environ.get(self.api_key_env, "").strip()

    def _detail(self, text: str) -> str:
        """Cuts a text of the endpoint, which may repeat what it was sent at any length, and blot out the key in it."""
        key = self._key()
        return (text.replace(key, "***") if key else text)[:300]


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

    future = asyncio.run_coroutine_threadsafe(all_of_them(), _loop())
    try:
        return future.result()
    finally:
        future.cancel()


@functools.cache
def _client(base_url: str, key: str, timeout_s: float, max_retries: int) -> AsyncOpenAI:
    from openai import AsyncOpenAI, Timeout

    timeout = Timeout(timeout_s, connect=min(5.0, timeout_s))
    return AsyncOpenAI(api_key=key, base_url=base_url, timeout=timeout, max_retries=max_retries)


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """Returns one loop per process, in a thread of its own: open connections belong to the loop that opened them."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="openai-client", daemon=True).start()
    return loop
