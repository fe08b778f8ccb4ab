"""Language models behind an OpenAI-compatible endpoint: a vLLM or SGLang server of one's own, or a hosted one."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from pydantic import NonNegativeFloat, PositiveInt

from models.chat.base import Failure, Prompt
from models.chat.openai_client import Endpoint, gather

JPEG_QUALITY = 90


@dataclass(frozen=True)
class OpenAIChat(Endpoint):
    """Asks a model over HTTP, `concurrency` prompts at a time.

    Attributes:
        max_new_tokens: longest answer, in tokens.
        temperature: 0 for the likeliest answer; None leaves it to the server.
        seed: seed of the sampling, where the server heeds it.
    """

    max_new_tokens: PositiveInt = 256
    temperature: NonNegativeFloat | None = 0.0
    seed: int | None = None

    def complete(self, prompts: Sequence[Prompt]) -> list[str | Failure]:
        """Answers prompts, in their order.

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
        completions = self.client().chat.completions
        try:
            reply = await completions.create(model=self.model, messages=messages, **given)
            choice, *_ = reply.choices
            text, reason = choice.message.content or "", choice.finish_reason
        except Exception as error:  # noqa: BLE001 - sorted there, raised again if it is none of the server's
            return self.failure(error)
        if reason == "content_filter" or not text.strip():
            return Failure("model_refused", f"{self.model} gave no answer (finish_reason {reason})")
        return text


def messages_of(prompt: Prompt) -> Any:
    """Returns a prompt as messages of the Chat Completions API, pictures as data URLs of JPEG."""
    images = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in prompt.images]
    content: Any = [*images, {"type": "text", "text": prompt.text}] if images else prompt.text
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, {"role": "user", "content": content}]


def _data_url(image: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(image).save(out, format="JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
