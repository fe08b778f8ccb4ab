"""Language models in this process, through transformers: vision-language models, and text-only ones."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from PIL import Image
from pydantic import PositiveInt
from safetensors import SafetensorError

from models.chat.base import Failure, Prompt
from models.chat.special_tokens import plain, special_tokens
from models.common.settings import Weights
from storage.errors import UserError
from storage.identity import speed


@dataclass(frozen=True)
class HuggingFaceChat(Weights):
    """Any image-text-to-text or causal language model of transformers, decoded greedily.

    Weights come from safetensors alone, and no code that a model brings along is run. A `dtype` of `auto` is bfloat16
    on a GPU and float32 on a CPU.

    Attributes:
        max_new_tokens: longest answer, in tokens.
        device_map: where accelerate puts the weights; `auto` takes the GPU that the process sees.
    """

    max_new_tokens: PositiveInt = 64
    device_map: str = speed("auto")

    backend = "huggingface"

    def load(self) -> None:
        """Loads weights and processor.

        Raises:
            UserError: there is no such model, transformers does not know its kind, or it has no safetensors.
        """
        _load(self.model, self.revision, self.dtype, self.device_map)

    def complete(self, prompts: Sequence[Prompt]) -> list[str | Failure]:
        """Answers prompts, in their order; those with equally many pictures make one batch.

        Raises:
            UserError: the model takes no pictures and a prompt has some, or the GPU's memory does not suffice.
        """
        loaded = _load(self.model, self.revision, self.dtype, self.device_map)
        prompts = [replace(prompt, text=plain(prompt.text, loaded.special)) for prompt in prompts]
        if not loaded.sees and any(prompt.images for prompt in prompts):
            raise UserError(f"{self.model} takes no pictures: choose a vision-language model.")
        answers: dict[int, str | Failure] = {}
        for pictures in sorted({len(prompt.images) for prompt in prompts}):  # processors differ on mixed batches
            rows = [row for row, prompt in enumerate(prompts) if len(prompt.images) == pictures]
            try:
                texts = _generate(loaded, [prompts[row] for row in rows], self.max_new_tokens)
            except torch.OutOfMemoryError:
                if len(rows) > 1:  # a smaller batch may fit, and `operators.base.apply` halves those that raise
                    raise
                message = f"{self.model} and one prompt do not fit into the GPU's memory"
                raise UserError(f"{message}: choose a smaller model or dtype.") from None
            answers.update(zip(rows, texts, strict=True))
        return [answers[row] for row in range(len(prompts))]


class _Loaded(NamedTuple):
    """A model with its processor, which is a tokenizer where the model does not see."""

    model: Any
    processor: Any
    sees: bool
    special: re.Pattern[str] | None  # tokens that no text may hold


@functools.cache
def _load(name: str, revision: str | None, dtype: str, device_map: str) -> _Loaded:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING as WRITE
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as SEE
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    where: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    config = read_config(name, where)
    if type(config) not in SEE and type(config) not in WRITE:
        raise UserError(f"{name} ({config.model_type}) writes no text: choose a language or vision-language model.")
    sees = type(config) in SEE
    auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    if dtype == "auto":
        dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    model = read_model(auto, name, config=config, dtype=dtype, device_map=device_map, **where)
    with reading(f"{name}'s processor"):
        processor = _processor(name, where, config, sees)
    tokenizer = processor.tokenizer if sees else processor
    tokenizer.padding_side = "right" if config.get_text_config().is_encoder_decoder else "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.generation_config.update(do_sample=False, num_beams=1, temperature=None, top_k=None, top_p=None)
    return _Loaded(model.eval(), processor, sees, special_tokens(tokenizer))


def read_config(name: str, where: dict[str, Any]) -> Any:
    """Returns the configuration of a model of transformers.

    Raises:
        UserError: there is no such model, or transformers does not know its kind.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, **where)
    except OSError as error:
        message = f"There is no model {name} within reach: give a folder, or a name on the Hugging Face hub."
        raise UserError(message) from error
    except ValueError as error:
        raise UserError(f"transformers does not know {name}'s kind of model: choose another.") from error


def read_model(auto: Any, name: str, **options: Any) -> Any:
    """Returns a model with its weights.

    Args:
        auto: class of transformers that chooses the model's.
        name: of the model, or its folder.
        options: of `from_pretrained`.

    Raises:
        UserError: it has no sound safetensors, or the GPU's memory does not suffice.
    """
    try:
        return auto.from_pretrained(name, use_safetensors=True, **options)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{name} has no sound weights as safetensors: choose a model or revision that has.") from error
    except torch.OutOfMemoryError:
        raise UserError(f"{name} does not fit into the GPU's memory: choose a smaller model or dtype.") from None


@contextmanager
def reading(part: str) -> Iterator[None]:
    """Words what goes wrong while a part of a model is read, such as its tokenizer, for the length of a block."""
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        raise UserError(f"{part} does not load, mend this or choose another model: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Returns the first line of what an exception says; libraries explain themselves on a page."""
    return str(error).strip().partition("\n")[0]


def _processor(name: str, where: dict[str, Any], config: Any, sees: bool) -> Any:
    from transformers import PROCESSOR_MAPPING, AutoImageProcessor, AutoProcessor, AutoTokenizer
    from transformers.utils import is_torchvision_available
    from transformers.video_processing_utils import BaseVideoProcessor

    if not sees:
        return AutoTokenizer.from_pretrained(name, **where)
    kind: Any = PROCESSOR_MAPPING[type(config)]
    if is_torchvision_available() or "video_processor" not in kind.get_attributes():
        return AutoProcessor.from_pretrained(name, **where)

    class FramesOnly(kind):
        """Videos come as pictures, so the video processor, which asks for torchvision, has a stand-in without use."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor":
                return type(argument)
            return super().check_argument_for_proper_class(argument_name, argument)

    parts = {
        "image_processor": lambda: AutoImageProcessor.from_pretrained(name, **where),
        "tokenizer": lambda: AutoTokenizer.from_pretrained(name, **where),
        "video_processor": BaseVideoProcessor,
    }
    settings, _ = kind.get_processor_dict(name, **where)
    return FramesOnly.from_args_and_dict([parts[part]() for part in kind.get_attributes()], settings)


@torch.inference_mode()
def _generate(loaded: _Loaded, prompts: list[Prompt], max_new_tokens: int) -> list[str]:
    inputs = {name: values.to(loaded.model.device) for name, values in _inputs(loaded, prompts).items()}
    inputs |= {name: values.to(loaded.model.dtype) for name, values in inputs.items() if values.is_floating_point()}
    tokens = loaded.model.generate(**inputs, max_new_tokens=max_new_tokens)
    asked = inputs["input_ids"]
    if torch.equal(tokens[:, : asked.shape[1]], asked):  # decoder-only models repeat the prompt, others do not
        tokens = tokens[:, asked.shape[1] :]
    return loaded.processor.batch_decode(tokens, skip_special_tokens=True)


def _inputs(loaded: _Loaded, prompts: list[Prompt]) -> Any:
    """Tensors of a batch of prompts with equally many pictures, by the model's own chat template where it has one."""
    processor = loaded.processor
    pictures = [[Image.fromarray(image) for image in prompt.images] for prompt in prompts]
    if not processor.chat_template:
        texts = [f"{prompt.system}\n{prompt.text}".strip() for prompt in prompts]
        options: dict[str, Any] = {"images": pictures} if any(pictures) else {}
        return processor(text=texts, padding=True, return_tensors="pt", **options)
    options = {"processor_kwargs": {"padding": True}} if loaded.sees else {"padding": True}
    return processor.apply_chat_template(
        [_messages(prompt, images, loaded.sees) for prompt, images in zip(prompts, pictures, strict=True)],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **options,
    )


def _messages(prompt: Prompt, pictures: list[Image.Image], sees: bool) -> list[dict[str, Any]]:
    """A conversation; templates of text-only models take strings, those of processors lists of parts."""

    def content(text: str, images: list[Image.Image]) -> Any:
        parts = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
        return parts if sees else text

    system = [{"role": "system", "content": content(prompt.system, [])}] if prompt.system else []
    return [*system, {"role": "user", "content": content(prompt.text, pictures)}]
