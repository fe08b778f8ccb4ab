"""Language models on vLLM inside this process: for GPUs, with paged attention and continuous batching."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from models.chat.base import Failure, Prompt
from models.chat.openai import messages_of
from models.common.settings import Weights
from storage.errors import UserError
from storage.identity import speed


@dataclass(frozen=True)
class VllmChat(Weights):
    """A model on the offline engine of vLLM (Kwon et al. 2023), decoded greedily.

    The engine batches by itself: give its pool a `batch_size` of some hundreds.

    Attributes:
        max_new_tokens: longest answer, in tokens.
        max_model_len: longest prompt and answer together, in tokens; None for the model's own.
        gpu_memory_utilization: share of the GPU's memory that the engine takes; lower it for a fraction of a GPU.
    """

    max_new_tokens: PositiveInt = 64
    max_model_len: PositiveInt | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = speed(0.9)

    backend = "vllm"

    def check(self) -> None:
        """Finds out whether the folder exists and vLLM is installed.

        Raises:
            UserError: one of them is missing.
        """
        super().check()
        if importlib.util.find_spec("vllm") is None:
            raise UserError("The backend vllm needs vLLM, which is not installed: install the extra, `.[vllm]`.")

    def load(self) -> None:
        """Starts the engine.

        Raises:
            UserError: as `check`.
        """
        self.check()
        _engine(self)

    def complete(self, prompts: Sequence[Prompt]) -> list[str | Failure]:
        """Answers prompts, in their order; one without an answer gets the failure `model_refused`."""
        from vllm import SamplingParams

        greedy = SamplingParams(temperature=0.0, max_tokens=self.max_new_tokens)
        conversations = [messages_of(prompt) for prompt in prompts]
        texts = [out.outputs[0].text for out in _engine(self).chat(conversations, greedy, use_tqdm=False)]
        return [text if text.strip() else Failure("model_refused", f"{self.model} gave no answer") for text in texts]


@functools.cache
def _engine(settings: VllmChat) -> Any:
    from vllm import LLM

    return LLM(
        model=settings.model,
        revision=settings.revision,
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        load_format="safetensors",
        trust_remote_code=False,
    )
