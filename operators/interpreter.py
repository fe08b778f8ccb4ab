"""How a run's items were interpreted, kept with the run, so that whoever serves it treats a new item alike.

RUN/models/interpreter/config.json holds the operators of the stream with all their settings, as plain JSON values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from models.captioning.captioner import ChatCaptioner
from models.captioning.qformer import QFormerCaptioner
from models.captioning.tagger.tagger import Tagger
from models.chat.huggingface import HuggingFaceChat
from models.chat.openai import OpenAIChat
from models.chat.smollm2 import SmolLM2
from models.chat.vllm import VllmChat
from models.embedding.local import LocalImages, LocalTexts
from models.embedding.openai import OpenAIEmbeddings
from models.embedding.qformer import QFormerImages, QFormerTexts
from models.embedding.sentence_transformers import SentenceTransformers
from models.interests.keywords import Keywords
from models.interests.mining import ChatMiner
from operators.assign_sids import AssignSids
from operators.base import Operator, apply, set_columns, with_outcome
from operators.caption import Caption
from operators.columns import filled_matrix, positions
from operators.embed import EmbedImages, EmbedTexts
from operators.interests import Interests
from operators.media.fetch import FRAME, FetchMedia
from operators.project import Project
from storage.errors import ArtifactError
from storage.media.limits import Limits
from storage.media.sources import Sources
from storage.run import RunDir

CLASSES = {
    kind.__name__: kind
    for kind in (
        *(FetchMedia, Limits, Sources, EmbedImages, Caption, Interests, EmbedTexts),
        *(Tagger, QFormerCaptioner, ChatCaptioner, Keywords, ChatMiner, SmolLM2, HuggingFaceChat, OpenAIChat, VllmChat),
        *(LocalImages, LocalTexts, QFormerImages, QFormerTexts, SentenceTransformers, OpenAIEmbeddings),
    )
}


def save_interpreter(run: RunDir, operators: Sequence[Operator]) -> None:
    """Keeps the operators of a run: what fetches media, and those after it, in order."""
    run.write_json(
        {"operators": [described(operator) for operator in operators]}, "models", "interpreter", "config.json"
    )


def described(configured: Any) -> Any:
    """Returns an operator, or what its fields hold, as plain JSON values, from which `rebuilt` makes it again."""
    if dataclasses.is_dataclass(configured):
        fields = {field.name: described(getattr(configured, field.name)) for field in dataclasses.fields(configured)}
        return {"class": type(configured).__name__, **fields}
    return configured


def rebuilt(value: Any) -> Any:
    """Returns what `described` has described.

    Raises:
        ArtifactError: it is of a class that is no operator and no model of these.
    """
    if isinstance(value, list):
        return tuple(rebuilt(part) for part in value)
    if not (isinstance(value, dict) and "class" in value):
        return value
    if value["class"] not in CLASSES:
        raise ArtifactError(
            f"The run was interpreted by {value['class']!r}, which this version does not know", "models"
        )
    return CLASSES[value["class"]](**{name: rebuilt(part) for name, part in value.items() if name != "class"})


class Interpreted(NamedTuple):
    """What a run's models make of new items, n rows in the order in which they were given.

    Attributes:
        table: item_id, caption, interests, issues and outcome, among others.
        embedding: float32 [n, D], zeros where there is none.
        codes: of the semantic ID, without a suffix, int32 [n, L].
    """

    table: pa.Table
    embedding: np.ndarray
    codes: np.ndarray


class Interpreter:
    """The operators of a run, from a medium or a text to an embedding and a semantic ID, in this process."""

    def __init__(self, run: RunDir) -> None:
        """Reads what the run was made with; nothing is loaded before `setup`.

        Raises:
            ArtifactError: it was made with something else than operators of this version.
        """
        kept = run.read_json("models", "interpreter", "config.json")
        self.fetch: FetchMedia
        self.fetch, *steps = (rebuilt(value) for value in kept["operators"])
        self._images = next(step for step in steps if isinstance(step, EmbedImages))
        self._texts = next(step for step in steps if isinstance(step, EmbedTexts))
        self._project = Project(run.uri("models", "projector"))
        self._steps: Sequence[Operator] = [*steps, self._project, AssignSids(run.uri("models", "quantizer"))]

    def setup(self) -> None:
        """Loads all models; once."""
        for operator in self._steps:
            operator.setup()

    def __call__(self, items: pa.Table) -> Interpreted:
        """Interprets items whose media are fetched: item_id, title, description, frames and media_digest."""
        table = with_outcome(items)
        for operator in self._steps:
            table = apply(operator, table)
        table = table.take(pa.array(positions(items["item_id"], table["item_id"])))
        (embedding, _), (codes, _) = (filled_matrix(table[name]) for name in ("embedding", "codes"))
        return Interpreted(table, embedding, codes.astype(np.int32))

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the embeddings of items that have these titles and nothing else, float32 [n, D]."""
        none = pa.nulls(len(texts), pa.string())
        table = pa.table(
            {
                "title": pa.array(texts, pa.string()),
                **dict.fromkeys(("caption", "description"), none),
                "interests": pa.nulls(len(texts), pa.list_(pa.string())),
                "frames": pa.array([[]] * len(texts), pa.list_(FRAME)),
            }
        )
        table = self._texts(with_outcome(table))
        pictures = pa.nulls(len(texts), self._images.output_schema.field("image_vector").type)
        table = self._project(set_columns(table, {"image_vector": pictures}))
        return filled_matrix(table["embedding"])[0]
