"""Language models behind an OpenAI-compatible endpoint: a vLLM or SGLang server of one's own, or a hosted one."""

from __future__ import annotations

import base64
import functools
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from models.chat import Failure, Prompt
from storage.errors import UserError
from storage.identity import speed

if TYPE_CHECKING:
    from openai import APIError, OpenAI

JPEG_QUALITY = 90


@dataclass(frozen=True)
class OpenAIChat:
    """A model asked over HTTP, `concurrency` prompts at a time.

    The client waits and tries again by itself, with exponential backoff, jitter and the server's Retry-After. One
    client per process keeps its connections open between calls; it is shared by threads, which need no event loop that
    would have to outlive a call.

    Attributes:
        model: the name under which the endpoint serves it.
        base_url: address of the endpoint; the same model is taken to answer the same wherever it is served.
        api_key_env: environment variable that holds the key; a server of one's own needs none.
        max_tokens: longest answer.
        temperature: 0 for the likeliest answer; None leaves it to the server.
        seed: of the sampling, where the server heeds it.
        concurrency: prompts in flight.
        timeout_s: seconds that one attempt may take.
        max_retries: attempts after the first.
    """

    model: str
    base_url: str = speed("https://api.openai.com/v1")
    api_key_env: str = speed("OPENAI_API_KEY")
    max_tokens: int = 256
    temperature: float | None = 0.0
    seed: int | None = None
    concurrency: int = speed(16)
    timeout_s: float = speed(60.0)
    max_retries: int = speed(4)

    def load(self) -> None:
        """Open the client.

        Raises:
            UserError: base_url is no address, or the endpoint asks for a key and the environment has none.
        """
        _client(self)

    def complete(self, prompts: Sequence[Prompt]) -> list[str | Failure]:
        """Answer prompts, in their order.

        A prompt without an answer has one of the codes `model_timeout`, `model_unavailable`, `model_rate_limited` (all
        after retries) and `model_refused`.

        Raises:
            UserError: the key is missing or refused, or the endpoint does not serve the model.
        """
        client = _client(self)
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(functools.partial(self._answer, client), prompts))  # an error cancels what waits

    def _answer(self, client: OpenAI, prompt: Prompt) -> str | Failure:
        import openai

        options = {"max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed}
        given: Any = {name: value for name, value in options.items() if value is not None}
        messages = _messages(prompt)
        try:
            choice = client.chat.completions.create(model=self.model, messages=messages, **given).choices[0]
            text, reason = choice.message.content or "", choice.finish_reason
        except (openai.AuthenticationError, openai.PermissionDeniedError):
            message = f"{self.base_url} refuses the key: put one that may use {self.model} into ${self.api_key_env}."
            raise UserError(message) from None  # the cause holds the request, and with it the key
        except openai.NotFoundError:
            message = f"{self.base_url} does not serve a model named {self.model}: check model and base_url."
            raise UserError(message) from None
        except openai.APIError as error:  # an endpoint may quote the request in its message
            return Failure(_code(error), error.message.replace(client.api_key, "***")[:300])
        except (AttributeError, LookupError, TypeError, ValueError):  # the client checks no shapes
            return Failure("model_unavailable", "The endpoint's answer is no chat completion.")
        if reason == "content_filter" or not text.strip():
            return Failure("model_refused", f"The model gave no answer (finish_reason {reason}).")
        return text


@functools.cache
def _client(chat: OpenAIChat) -> OpenAI:
    try:
        from openai import OpenAI
    except ImportError as error:
        raise UserError("Models behind an endpoint need the package openai: pip install openai.") from error
    address = urlsplit(chat.base_url)
    if address.scheme not in ("http", "https"):
        raise UserError(f"base_url {chat.base_url} is no address: write it as http://HOST:PORT/v1.")
    key = os.environ.get(chat.api_key_env, "").strip()
    if not key and address.hostname == "api.openai.com":
        raise UserError(f"There is no key for {chat.base_url}: put one into the environment as {chat.api_key_env}.")
    return OpenAI(base_url=chat.base_url, api_key=key or "EMPTY", timeout=chat.timeout_s, max_retries=chat.max_retries)


def _messages(prompt: Prompt) -> Any:
    images = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in prompt.images]
    content: Any = [*images, {"type": "text", "text": prompt.text}] if images else prompt.text
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, {"role": "user", "content": content}]


def _data_url(image: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(image).save(out, format="JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _code(error: APIError) -> str:
    import openai

    if isinstance(error, openai.APITimeoutError):
        return "model_timeout"
    if isinstance(error, openai.RateLimitError):
        return "model_rate_limited"
    if isinstance(error, openai.APIStatusError) and error.status_code in (400, 413, 422):
        return "model_refused"
    return "model_unavailable"
