"""Language models on vLLM inside this process: for GPUs, with paged attention and continuous batching."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.chat.base import Failure, Prompt
from models.chat.openai import messages_of
from storage.errors import UserError
from storage.identity import speed


@dataclass(frozen=True)
class VllmChat:
    """A model on the offline engine of vLLM (Kwon et al. 2023), decoded greedily.

    The engine batches by itself: give its pool a `batch_size` of some hundreds.

    Attributes:
        model: a folder, or a name on the Hugging Face hub.
        revision: branch, tag or commit on the hub.
        dtype: of the weights, as vLLM names it.
        max_new_tokens: longest answer.
        max_model_len: longest prompt and answer together, in tokens; None for the model's own.
        gpu_memory_utilization: share of the GPU's memory that the engine takes; lower it for a fraction of a GPU.
    """

    model: str
    revision: str | None = None
    dtype: str = "auto"
    max_new_tokens: int = 64
    max_model_len: int | None = None
    gpu_memory_utilization: float = speed(0.9)

    def load(self) -> None:
        """Start the engine.

        Raises:
            UserError: vLLM is not installed.
        """
        _engine(self)

    def complete(self, prompts: Sequence[Prompt]) -> list[str | Failure]:
        """Answer prompts, in their order; one without an answer gets the failure `model_refused`."""
        from vllm import SamplingParams

        greedy = SamplingParams(temperature=0.0, max_tokens=self.max_new_tokens)
        conversations = [messages_of(prompt) for prompt in prompts]
        texts = [out.outputs[0].text for out in _engine(self).chat(conversations, greedy, use_tqdm=False)]
        return [text if text.strip() else Failure("model_refused", f"{self.model} gave no answer") for text in texts]


@functools.cache
def _engine(settings: VllmChat) -> Any:
    try:
        from vllm import LLM
    except ImportError as error:
        raise UserError("The backend vllm needs vLLM, which is not installed: install the extra, `.[vllm]`.") from error
    return LLM(
        model=settings.model,
        revision=settings.revision,
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        load_format="safetensors",
        trust_remote_code=False,
    )
