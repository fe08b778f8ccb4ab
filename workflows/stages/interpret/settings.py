"""The models that a definition may name for captions, interests and embeddings, and their settings.

A section names its model by `backend`; what else it may say depends on that. Defaults are those of the models' own
classes.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from models.captioning.captioner import CAPTION_PROMPT, ChatCaptioner
from models.captioning.tagger.tagger import Tagger
from models.chat.base import Chat
from models.chat.huggingface import HuggingFaceChat
from models.chat.openai import OpenAIChat
from models.chat.openai_client import client
from models.chat.smollm2 import SmolLM2
from models.chat.vllm import VllmChat
from models.common.settings import ModelName
from models.embedding.local import LocalImages, LocalTexts
from models.embedding.openai import OpenAIEmbeddings
from models.embedding.sentence_transformers import SentenceTransformers
from models.interests.keywords import Keywords
from models.interests.mining import PROMPT as INTERESTS_PROMPT
from models.interests.mining import ChatMiner
from operators.base import Operator
from operators.caption import Caption
from operators.embed import EmbedImages, EmbedTexts
from operators.gate import GateRule
from operators.interests import Interests
from storage.errors import UserError
from workflows.distributed.pools import Place, Pool

Made = TypeVar("Made")
ROOM_TO_REASON = 256  # tokens: a model may think before it names interests


def made(kind: type[Made], settings: BaseModel, **others: Any) -> Made:
    """A dataclass from the settings of the same names."""
    names = {field.name for field in dataclasses.fields(kind)} & set(type(settings).model_fields)  # type: ignore[arg-type]
    return kind(**{name: getattr(settings, name) for name in names}, **others)


class Section(BaseModel):
    """Settings of one operator of the stream; without a pool it runs beside its neighbours, see `pools.plan`."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    pool: Pool | None = None
    place: ClassVar[Place] = "cpu"  # see `pools.Step`

    def check(self) -> None:
        """Find what is wrong with a model before anything runs, as far as that is cheap.

        Raises:
            UserError: the model cannot work on this machine.
        """


def _variable_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*", name):  # and never say what was given, which may be the key itself
        raise PydanticCustomError("variable", "must be the name of an environment variable, not a key")
    return name


def _without_credentials(url: str) -> str:
    if "@" in url:
        raise PydanticCustomError("credentials", "must hold no credentials; put the key into api_key_env's variable")
    return url


VariableName = Annotated[str, AfterValidator(_variable_name)]
Address = Annotated[str, AfterValidator(_without_credentials)]


class _Weights(Section):
    """Weights of one's own choice, from a folder or the hub."""

    place = "model"
    model: ModelName
    revision: str | None = None
    dtype: str = "auto"

    def check(self) -> None:
        if self.model.startswith("/") and not Path(self.model).is_dir():
            raise UserError(f"There is no model at {self.model}: give a folder, or a name on the Hugging Face hub.")


class _Chat(Section):
    """A language model, of the class `kind`."""

    kind: ClassVar[type[Any]]

    def chat(self) -> Chat:
        model: Chat = made(self.kind, self)
        return model


class _HuggingFace(_Weights, _Chat):
    kind = HuggingFaceChat
    backend: Literal["huggingface"]
    max_new_tokens: int = Field(HuggingFaceChat.max_new_tokens, ge=1)
    device_map: str = "auto"


class _Vllm(_Weights, _Chat):
    kind = VllmChat
    backend: Literal["vllm"]
    max_new_tokens: int = Field(VllmChat.max_new_tokens, ge=1)
    max_model_len: int | None = Field(None, ge=1)
    gpu_memory_utilization: float = Field(VllmChat.gpu_memory_utilization, gt=0, le=1)

    def check(self) -> None:
        super().check()
        if importlib.util.find_spec("vllm") is None:
            raise UserError("The backend vllm needs vLLM, which is not installed: install the extra, `.[vllm]`.")


class _Endpoint(Section):
    """Any OpenAI-compatible endpoint. The key itself is never a setting: a definition is written into every run."""

    place = "remote"
    backend: Literal["openai"]
    model: str
    base_url: Address = OpenAIChat.base_url
    api_key_env: VariableName = OpenAIChat.api_key_env
    timeout_s: float = Field(OpenAIChat.timeout_s, gt=0)
    max_retries: int = Field(OpenAIChat.max_retries, ge=0)
    concurrency: int = Field(OpenAIChat.concurrency, ge=1)

    def check(self) -> None:
        client(self.base_url, self.api_key_env, self.timeout_s, self.max_retries)


class _OpenAI(_Endpoint, _Chat):
    kind = OpenAIChat
    max_new_tokens: int = Field(OpenAIChat.max_new_tokens, ge=1)
    temperature: float | None = Field(OpenAIChat.temperature, ge=0)
    seed: int | None = None


class _SmolLM2(_Chat):
    kind = SmolLM2
    place = "model"
    backend: Literal["smollm2"]
    max_new_tokens: int = Field(SmolLM2.max_new_tokens, ge=1)


class Gate(BaseModel):
    """Which items are worth a caption; see `operators.gate`.

    Attributes:
        log_share: the first share of the log that popularity and age are read from, so that events that later test a
            model decide nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    has_media: bool = GateRule.has_media
    thin_below: int | None = Field(None, ge=1)
    popular_from: int | None = Field(None, ge=1)
    new_within_days: float | None = Field(None, gt=0)
    budget: int | None = Field(None, ge=0)
    log_share: float = Field(0.8, gt=0, le=1)

    def rule(self) -> GateRule:
        """The rule with these settings."""
        return made(GateRule, self)


class _Captions(Section):
    gate: Gate = Gate()


class TaggerCaptions(_Captions):
    """Captions by the default tagger."""

    backend: Literal["tagger"] = "tagger"
    frames: Literal["first", "grid", "each"] = "first"

    def operator(self, *, local_vectors: bool) -> Operator:
        """The operator with these settings."""
        return Caption(Tagger(vector_is_local=local_vectors), frames=self.frames)


class _ChatCaptions(_Captions, _Chat):
    prompt: str = CAPTION_PROMPT
    context: bool = ChatCaptioner.context
    frames: Literal["first", "grid", "each"] = "grid"

    def operator(self, *, local_vectors: bool) -> Operator:
        """The operator with these settings."""
        return Caption(made(ChatCaptioner, self, chat=self.chat()), frames=self.frames)


class HuggingFaceCaptions(_HuggingFace, _ChatCaptions):
    """Captions by a model of transformers."""


class VllmCaptions(_Vllm, _ChatCaptions):
    """Captions by a model on vLLM."""


class OpenAICaptions(_OpenAI, _ChatCaptions):
    """Captions by a model behind an endpoint."""


class KeywordInterests(Section):
    """Interests by keyword extraction."""

    backend: Literal["keywords"] = "keywords"

    def operator(self) -> Operator:
        """The operator with these settings."""
        return Interests(Keywords())


class _ChatInterests(_Chat):
    prompt: str = INTERESTS_PROMPT

    def operator(self) -> Operator:
        """The operator with these settings."""
        return Interests(made(ChatMiner, self, chat=self.chat()))


class SmolLM2Interests(_SmolLM2, _ChatInterests):
    """Interests by the packaged SmolLM2-135M-Instruct."""


class HuggingFaceInterests(_HuggingFace, _ChatInterests):
    """Interests by a model of transformers."""

    max_new_tokens: int = Field(ROOM_TO_REASON, ge=1)


class VllmInterests(_Vllm, _ChatInterests):
    """Interests by a model on vLLM."""

    max_new_tokens: int = Field(ROOM_TO_REASON, ge=1)


class OpenAIInterests(_OpenAI, _ChatInterests):
    """Interests by a model behind an endpoint."""


class LocalImageEmbedding(Section):
    """The default image encoder."""

    place = "gpu"
    backend: Literal["local"] = "local"

    def operator(self) -> Operator:
        """The operator with these settings."""
        return EmbedImages(LocalImages())


class _SentenceTransformers(_Weights):
    backend: Literal["sentence-transformers"]
    width: int = Field(ge=1)
    prompt: str | None = None
    prompt_name: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    normalise: bool = SentenceTransformers.normalise
    pooling: Literal["mean", "cls", "lasttoken"] | None = None
    chat_template: str | None = None
    batch_size: int = Field(SentenceTransformers.batch_size, ge=1)


class SentenceTransformersImages(_SentenceTransformers):
    """Pictures through any model of sentence-transformers that takes them."""

    def operator(self) -> Operator:
        """The operator with these settings."""
        return EmbedImages(made(SentenceTransformers, self))


class LocalTextEmbedding(Section):
    """The default text encoder."""

    place = "gpu"
    backend: Literal["local"] = "local"

    def operator(self) -> Operator:
        """The operator with these settings."""
        return EmbedTexts(LocalTexts())


class SentenceTransformersTexts(_SentenceTransformers):
    """`joint` passes an item's first frame along with its text, to a multimodal model such as GME-Qwen2-VL."""

    joint: bool = False

    def operator(self) -> Operator:
        """The operator with these settings."""
        return EmbedTexts(made(SentenceTransformers, self), joint=self.joint)


class OpenAITexts(_Endpoint):
    """Texts through the embeddings of an OpenAI-compatible endpoint."""

    width: int = Field(ge=1)
    request_width: bool = OpenAIEmbeddings.request_width
    max_chars: int = Field(OpenAIEmbeddings.max_chars, ge=1)
    batch_size: int = Field(OpenAIEmbeddings.batch_size, ge=1)
    concurrency: int = Field(OpenAIEmbeddings.concurrency, ge=1)

    def operator(self) -> Operator:
        """The operator with these settings."""
        return EmbedTexts(made(OpenAIEmbeddings, self))


def _backend_of(default: str) -> Discriminator:
    return Discriminator(
        lambda raw: raw.get("backend", default) if isinstance(raw, dict) else getattr(raw, "backend", default)
    )


CaptionSection = Annotated[
    Annotated[TaggerCaptions, Tag("tagger")]
    | Annotated[HuggingFaceCaptions, Tag("huggingface")]
    | Annotated[OpenAICaptions, Tag("openai")]
    | Annotated[VllmCaptions, Tag("vllm")],
    _backend_of("tagger"),
]
InterestSection = Annotated[
    Annotated[KeywordInterests, Tag("keywords")]
    | Annotated[SmolLM2Interests, Tag("smollm2")]
    | Annotated[HuggingFaceInterests, Tag("huggingface")]
    | Annotated[OpenAIInterests, Tag("openai")]
    | Annotated[VllmInterests, Tag("vllm")],
    _backend_of("keywords"),
]
ImageEmbeddingSection = Annotated[
    Annotated[LocalImageEmbedding, Tag("local")] | Annotated[SentenceTransformersImages, Tag("sentence-transformers")],
    _backend_of("local"),
]
TextEmbeddingSection = Annotated[
    Annotated[LocalTextEmbedding, Tag("local")]
    | Annotated[SentenceTransformersTexts, Tag("sentence-transformers")]
    | Annotated[OpenAITexts, Tag("openai")],
    _backend_of("local"),
]
