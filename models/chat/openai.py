"""Language models behind an OpenAI-compatible endpoint: a vLLM or SGLang server of one's own, or a hosted one."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from models.chat.base import Failure, Prompt
from models.chat.openai_client import OPENAI_URL, client, failure_of, gather
from storage.identity import speed

JPEG_QUALITY = 90


@dataclass(frozen=True)
class OpenAIChat:
    """Asks a model over HTTP, `concurrency` prompts at a time; see `models.chat.openai_client` for retries.

    Attributes:
        model: the name under which the endpoint serves it.
        base_url: address of the endpoint; the same model is taken to answer the same wherever it is served.
        api_key_env: environment variable that holds the key; a server of one's own needs none.
        max_new_tokens: longest answer.
        temperature: 0 for the likeliest answer; None leaves it to the server.
        seed: of the sampling, where the server heeds it.
        concurrency: prompts in flight.
        timeout_s: seconds that one attempt may take.
        max_retries: attempts after the first.
    """

    model: str
    base_url: str = speed(OPENAI_URL)
    api_key_env: str = speed("OPENAI_API_KEY")
    max_new_tokens: int = 256
    temperature: float | None = 0.0
    seed: int | None = None
    concurrency: int = speed(16)
    timeout_s: float = speed(60.0)
    max_retries: int = speed(4)

    def load(self) -> None:
        """Open the client.

        Raises:
            UserError: base_url is no address, or its server asks for a key and the environment has none.
        """
        client(self.base_url, self.api_key_env, self.timeout_s, self.max_retries)

    def complete(self, prompts: Sequence[Prompt]) -> list[str | Failure]:
        """Answer prompts, in their order.

        A prompt without an answer has one of the codes `model_timeout`, `model_unavailable`, `model_rate_limited` (all
        after retries) and `model_refused`.

        Raises:
            UserError: the key is missing or refused, or the endpoint does not serve the model.
        """
        return gather(self._answer, prompts, self.concurrency)

    async def _answer(self, prompt: Prompt) -> str | Failure:
        options = {"max_tokens": self.max_new_tokens, "temperature": self.temperature, "seed": self.seed}
        given: Any = {name: value for name, value in options.items() if value is not None}
        messages = messages_of(prompt)
        completions = client(self.base_url, self.api_key_env, self.timeout_s, self.max_retries).chat.completions
        try:
            reply = await completions.create(model=self.model, messages=messages, **given)
            choice, *_ = reply.choices
            text, reason = choice.message.content or "", choice.finish_reason
        except Exception as error:  # noqa: BLE001 - sorted there, raised again if it is none of the server's
            return failure_of(error, model=self.model, base_url=self.base_url, api_key_env=self.api_key_env)
        if reason == "content_filter" or not text.strip():
            return Failure("model_refused", f"{self.model} gave no answer (finish_reason {reason})")
        return text


def messages_of(prompt: Prompt) -> Any:
    """A prompt as messages of the Chat Completions API, pictures as data URLs of JPEG."""
    images = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in prompt.images]
    content: Any = [*images, {"type": "text", "text": prompt.text}] if images else prompt.text
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, {"role": "user", "content": content}]


def _data_url(image: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(image).save(out, format="JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
