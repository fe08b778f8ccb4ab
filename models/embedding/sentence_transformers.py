"""Embeddings by any model that sentence-transformers loads: of texts, of pictures, and of both in one input."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from PIL import Image
from pydantic import PositiveInt
from torch import Tensor

from models.chat.huggingface import first_line
from models.chat.special_tokens import plain, special_tokens
from models.common.rows import encode_rows
from models.common.settings import Weights
from models.embedding.embedder import Embeddings
from storage.errors import UserError
from storage.identity import speed

LENGTH_STEP = 16  # tokens that lengths are padded to a multiple of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class SentenceTransformers(Weights):
    """A model by name or folder, with weights from safetensors only, and never with code from where they came.

    A text that is too long is cut by its tokens before prompt and template are put around it. Cutting the whole input,
    as tokenizers do, would take the template's end, and with it the token that last-token pooling reads.

    For GME-Qwen2-VL (Zhang et al. 2024), whose own files ask for code, set `pooling` to `lasttoken`, `prompt` to `You
    are a helpful assistant.`, and a `chat_template` that ends in `<|im_start|>assistant\\n<|endoftext|>`; tried on a
    tiny Qwen2-VL with random weights. A `dtype` of `auto` is that of the weights on a GPU and float32 on a CPU.

    Attributes:
        width: components of a vector.
        prompt: text put before every text, or the system message of a model with a chat template; None for the
            model's own default.
        prompt_name: one of the model's own prompts, in place of `prompt`.
        max_tokens: longest input, with template and picture; None, or more than the model takes, for what it takes.
        normalise: scale vectors to unit length.
        pooling: `mean`, `cls` or `lasttoken`, for weights that come without sentence-transformers' own files or whose
            files ask for code; None for what those files say.
        chat_template: template in Jinja, in place of the model's own.
        batch_size: inputs that pass the model at once on a GPU; on a CPU each passes alone.
    """

    width: PositiveInt
    prompt: str | None = None
    prompt_name: str | None = None
    max_tokens: PositiveInt | None = None
    normalise: bool = True
    pooling: Literal["mean", "cls", "lasttoken"] | None = None
    chat_template: str | None = None
    batch_size: PositiveInt = speed(32)

    version: ClassVar[int] = 2
    backend = "sentence-transformers"

    def load(self) -> None:
        """Loads the model.

        Raises:
            UserError: there is no such model, it has no safetensors, it needs code of its own, or it lacks the prompt
                or the chat template that is asked of it.
        """
        _load(self)

    def embed_images(self, pictures: list[np.ndarray]) -> np.ndarray:
        """Embeds pictures (uint8 [H, W, 3], any sizes) to float32 [N, width].

        Raises:
            UserError: the model takes no pictures, or its vectors have another width.
        """
        return self._embed([""] * len(pictures), pictures)

    def embed_texts(self, texts: Sequence[str], images: Sequence[np.ndarray | None] | None = None) -> Embeddings:
        """Embeds texts, each in one input with its picture where there is one, to float32 [N, width].

        Raises:
            UserError: the model does not take such inputs, or its vectors have another width.
        """
        return Embeddings(self._embed(texts, images or [None] * len(texts)), {})

    def _embed(self, texts: Sequence[str], images: Sequence[np.ndarray | None]) -> np.ndarray:
        loaded = _load(self)
        model = loaded.model
        pairs = zip(texts, images, strict=True)
        inputs = [_features(plain(text, loaded.special), image, loaded) for text, image in pairs]

        def network(rows: list[int]) -> Tensor:
            found = model(_stacked([inputs[row] for row in rows], model.device))["sentence_embedding"]
            found = found[:, : model.truncate_dim].float()
            if found.shape[1] != self.width:
                raise UserError(
                    f"{self.model} gives vectors of width {found.shape[1]}, not {self.width}: set its width."
                )
            return F.normalize(found, dim=1) if self.normalise else found

        alike: dict[str, list[int]] = {}
        for row, features in enumerate(inputs):
            shape = {name: value.shape if isinstance(value, Tensor) else value for name, value in features.items()}
            alike.setdefault(str(shape), []).append(row)
        vectors = np.zeros((len(texts), self.width), np.float32)
        return encode_rows(vectors, alike.values(), network, device=model.device, size=self.batch_size)


class _Loaded(NamedTuple):
    """A model, and what is found out about it once."""

    name: str
    model: SentenceTransformer
    prompt: str | None
    limit: float  # tokens of an input
    step: int  # of their lengths
    tokenizer: PreTrainedTokenizerBase | None
    special: re.Pattern[str] | None


@functools.cache
def _load(settings: SentenceTransformers) -> _Loaded:
    try:
        model = _read(settings).eval()
    except ImportError as error:  # torchvision, for models that take videos as well
        raise UserError(f"{settings.model} needs a package, install it: {first_line(error)}") from error
    except Exception as error:  # hub, configuration, tokenizer and weights each fail in their own ways
        hint = "name a model of the Hugging Face hub, or a folder, that has safetensors and needs no code of its own"
        raise UserError(f"{settings.model} does not load, {hint}: {first_line(error)}") from error
    if settings.chat_template is not None and not model.supports("message"):
        raise UserError(f"{settings.model} has no chat template that could be replaced: leave chat_template out.")
    tokenizer = getattr(model[0], "tokenizer", None)
    tokenizer = tokenizer if hasattr(tokenizer, "added_tokens_decoder") else None  # not all of them are transformers'
    limit = min(settings.max_tokens or math.inf, model.max_seq_length or math.inf)
    # rows pass a CPU alone, at their own lengths; and none is padded beyond the limit
    step = 1 if model.device.type == "cpu" else math.gcd(LENGTH_STEP, 0 if math.isinf(limit) else int(limit))
    return _Loaded(settings.model, model, _prompt(settings, model), limit, step, tokenizer, special_tokens(tokenizer))


def _read(settings: SentenceTransformers) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    hub: dict[str, Any] = {"revision": settings.revision, "trust_remote_code": False}
    slow_here = settings.dtype == "auto" and not torch.cuda.is_available()
    weights = {"dtype": "float32" if slow_here else settings.dtype, "use_safetensors": True}
    template = {} if settings.chat_template is None else {"chat_template": settings.chat_template}
    if settings.pooling is None:
        return SentenceTransformer(settings.model, model_kwargs=weights, processor_kwargs=template, **hub)
    network = Transformer(
        settings.model, model_kwargs=weights | hub, processor_kwargs=template | hub, config_kwargs=hub
    )
    return SentenceTransformer(modules=[network, Pooling(network.get_embedding_dimension(), settings.pooling)])


def _prompt(settings: SentenceTransformers, model: SentenceTransformer) -> str | None:
    name = settings.prompt_name or model.default_prompt_name
    if settings.prompt is not None or name is None:
        return settings.prompt
    if model.prompts.get(name) is None:
        known = ", ".join(sorted(key for key, text in model.prompts.items() if text is not None)) or "none"
        raise UserError(
            f"{settings.model} has no prompt named {name}: choose one of its own ({known}), or write prompt."
        )
    return model.prompts[name]


def _features(text: str, image: np.ndarray | None, loaded: _Loaded) -> dict[str, Any]:
    """What the model reads of a row: none of it is cut but the text, by as many tokens as are too many.

    On a GPU tokens are padded to few lengths, so that rows can pass together whatever their neighbours.
    """
    uncut = {"text": {"truncation": False, "pad_to_multiple_of": loaded.step}}
    while True:
        features = loaded.model.preprocess([_input(text, image, loaded)], prompt=loaded.prompt, processing_kwargs=uncut)
        if "attention_mask" not in features or loaded.tokenizer is None:
            return features
        excess = int(features["attention_mask"].sum()) - loaded.limit
        if excess <= 0:
            return features
        if not text:
            raise UserError(
                f"{loaded.limit} tokens have no room for template and picture of {loaded.name}: raise max_tokens."
            )
        text = _shorten(text, int(excess), loaded.tokenizer)


def _stacked(inputs: list[dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """Returns the inputs of rows of one shape as one batch on a device; what is no tensor is alike in all."""
    return {
        name: torch.cat([row[name] for row in inputs]).to(device) if isinstance(value, Tensor) else value
        for name, value in inputs[0].items()
    }


def _input(text: str, image: np.ndarray | None, loaded: _Loaded) -> Any:
    parts = ({} if image is None else {"image": Image.fromarray(image)}) | ({"text": text} if text else {})
    kind: Any = tuple(parts)
    if not loaded.model.supports(kind[0] if len(kind) == 1 else kind):
        raise UserError(f"{loaded.name} takes no {' and '.join(kind)} in one input: choose a model that does.")
    # A bare string that looks like an address or a file would be opened by a model that takes pictures.
    return parts if loaded.model.supports("image") else text


def _shorten(text: str, tokens: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Takes tokens from the end of a text."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text[: offsets[-tokens][0]].rstrip() if len(offsets) > tokens else ""
