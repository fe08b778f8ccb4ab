"""What a definition may say of captions, interests and embeddings.

A section names a backend, and may write beside it, all on one level: the fields of that backend's dataclass, those of
the operator and of the prompt around it, and a pool. A new backend is a dataclass in `models`, and one entry below.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Literal, Union, get_type_hints

from pydantic import Discriminator, GetCoreSchemaHandler, Tag, create_model
from pydantic_core import CoreSchema

from models.captioning.captioner import ChatCaptioner
from models.captioning.qformer import QFormerCaptioner
from models.captioning.tagger.tagger import Tagger
from models.chat.huggingface import HuggingFaceChat
from models.chat.openai import OpenAIChat
from models.chat.smollm2 import SmolLM2
from models.chat.vllm import VllmChat
from models.common.settings import Backend, Place, Settings
from models.embedding.local import LocalImages, LocalTexts
from models.embedding.openai import OpenAIEmbeddings
from models.embedding.qformer import QFormerImages, QFormerTexts
from models.embedding.sentence_transformers import SentenceTransformers
from models.interests.keywords import Keywords
from models.interests.mining import ChatMiner
from operators.base import Operator
from operators.caption import Caption
from operators.embed import EmbedImages, EmbedTexts
from operators.gate import GateRule
from operators.interests import Interests
from workflows.distributed.pools import Pool

ROOM_TO_REASON = 256  # tokens: a model may think before it names interests


class Section(Settings):
    """Settings of one operator of the stream; without a pool it runs beside its neighbours, see `pools.plan`."""

    pool: Pool | None = None


class ModelSection(Section):
    """Settings of an operator that calls a model.

    Attributes:
        backend: name of the model's class, see `models.common.settings.Backend`.
        parts: dataclasses whose fields are settings: the operator, and what it holds as its first field, and so on down
            to the backend.
    """

    backend: str
    parts: ClassVar[tuple[type[Any], ...]]

    @property
    def place(self) -> Place:
        """Where the model works."""
        place: Place = self.parts[-1].place
        return place

    def check(self) -> None:
        """Finds what is wrong with the model before anything runs; see `Backend.check`."""
        model: Backend = self._build(self.parts[-1:])
        model.check()

    def operator(self, **derived: Any) -> Operator:
        """Makes the operator; `derived` are fields of its parts that are no settings."""
        operator: Operator = self._build(self.parts, **derived)
        return operator

    def _build(self, parts: tuple[type[Any], ...], **derived: Any) -> Any:
        given = {**dict(self), **derived}
        held: tuple[Any, ...] = ()
        for part in reversed(parts):
            names = {field.name for field in dataclasses.fields(part)}
            held = (part(*held, **{name: value for name, value in given.items() if name in names}),)
        return held[0]


class Captions(ModelSection):
    """Settings of captions: a model, and the gate that chooses its items."""

    gate: GateRule = GateRule()


def section(
    *parts: type[Any], base: type[ModelSection] = ModelSection, without: Collection[str] = (), **defaults: Any
) -> type[ModelSection]:
    """Makes the section of one backend.

    Args:
        parts: see `ModelSection.parts`.
        base: settings beside those of the parts.
        without: fields that are no settings here.
        defaults: where they differ from those of the fields.
    """
    backend = parts[-1].backend
    settings: dict[str, Any] = {"backend": (Literal[backend], backend)}
    for part in parts:
        hints = get_type_hints(part, include_extras=True)
        for field in dataclasses.fields(part)[part is not parts[-1] :]:  # an outer part's first field holds the next
            if field.name not in without:
                default = defaults.get(field.name, field.default)
                settings[field.name] = (hints[field.name], ... if default is dataclasses.MISSING else default)
    made = create_model(parts[-1].__name__ + parts[0].__name__, __base__=base, **settings)
    made.parts = parts
    return made


class OneOf:
    """Validates, inside `Annotated`, as the section that the key `backend` names; without it as the first."""

    def __init__(self, *sections: type[ModelSection]) -> None:
        self.__args__ = sections  # as a Union has them: `engine.definition` looks there for valid keys

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        tagged = {section.parts[-1].backend: section for section in self.__args__}
        first = next(iter(tagged))

        def backend(raw: Any) -> Any:  # errors show the function's name as the key's
            return raw.get("backend", first) if isinstance(raw, dict) else getattr(raw, "backend", first)

        union: Any = Union[tuple(Annotated[section, Tag(name)] for name, section in tagged.items())]  # noqa: UP007
        return handler.generate_schema(Annotated[union, Discriminator(backend)])


CHATS = (HuggingFaceChat, OpenAIChat, VllmChat)
CAPTIONS = OneOf(
    section(Caption, Tagger, base=Captions, without=("vector_is_local",)),
    section(Caption, QFormerCaptioner, base=Captions),
    *(section(Caption, ChatCaptioner, chat, base=Captions, frames="grid") for chat in CHATS),
)
INTERESTS = OneOf(
    section(Interests, Keywords),
    section(Interests, ChatMiner, SmolLM2, kinds=("keyword",)),  # too small a model for anything latent
    section(Interests, ChatMiner, HuggingFaceChat, max_new_tokens=ROOM_TO_REASON),
    section(Interests, ChatMiner, OpenAIChat),
    section(Interests, ChatMiner, VllmChat, max_new_tokens=ROOM_TO_REASON),
)
IMAGES = OneOf(*(section(EmbedImages, model) for model in (LocalImages, SentenceTransformers, QFormerImages)))
TEXTS = OneOf(
    section(EmbedTexts, LocalTexts, without=("joint",)),
    section(EmbedTexts, QFormerTexts, without=("joint",)),
    section(EmbedTexts, SentenceTransformers),
    section(EmbedTexts, OpenAIEmbeddings, without=("joint",)),
)
