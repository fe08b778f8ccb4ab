"""Captioners: pictures in, one sentence about each out. The default needs no language model; any `Chat` is another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.chat.base import Chat, Failure, Prompt

# What is asked for follows TriAlignGR (arXiv 2605.05249) and DeepInterestGR (arXiv 2604.20861); the words are ours.
CAPTION_PROMPT = (
    "Describe this picture of a catalogue item in one factual sentence of at most 40 words: what is visible, its "
    "colours, shape and material, and the setting or scene. Guess nothing about people, and state nothing that cannot "
    "be seen. Pictures in a grid show one item: describe the item and not the grid. Answer with the sentence alone."
)
CONTEXT_PROMPT = "The item's title, which may be wrong or tell what cannot be seen, is: {title!r}."
TITLE_LENGTH = 200
_CHATTER = re.compile(
    r"^(?:(?:sure|certainly|of course)\b[^\w]*)?(?:here(?: is|'s|’s)\b[^.:]{0,80}:\s*)?", re.IGNORECASE
)


@dataclass(frozen=True)
class Context:
    """What is known about a picture's item.

    Attributes:
        title: the item's title.
        image_vector: the item's image vector, float32 [D].
    """

    title: str | None = None
    image_vector: np.ndarray | None = None


class Captioner(Protocol):
    """Describes pictures. Implementations are frozen dataclasses whose fields are their settings."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the fields of `Context` that it makes use of."""

    def load(self) -> None:
        """Loads weights or open the client; once per process, a second call is a no-op.

        Raises:
            UserError: the settings cannot work.
        """

    def caption(self, images: Sequence[np.ndarray], contexts: Sequence[Context]) -> list[str | Failure]:
        """Describes pictures (uint8 [H, W, 3], any sizes), each in its context.

        Raises:
            UserError: no picture can be described under these settings.
        """


@dataclass(frozen=True)
class ChatCaptioner:
    """A vision-language model as captioner.

    Attributes:
        chat: the model.
        prompt: the question about every picture.
        context: tell the model the item's title, too.
    """

    chat: Chat
    prompt: str = CAPTION_PROMPT
    context: bool = True

    @property
    def reads(self) -> tuple[str, ...]:
        """Names the title, if `context` is set."""
        return ("title",) if self.context else ()

    def load(self) -> None:
        """Loads the model; see `Chat.load`."""
        self.chat.load()

    def caption(self, images: Sequence[np.ndarray], contexts: Sequence[Context]) -> list[str | Failure]:
        """Asks the model about each picture; an empty answer is a failure with the code `model_refused`."""
        prompts = [
            Prompt(self._text(context), images=(image,)) for image, context in zip(images, contexts, strict=True)
        ]
        return [answer if isinstance(answer, Failure) else _tidy(answer) for answer in self.chat.complete(prompts)]

    def _text(self, context: Context) -> str:
        title = " ".join((context.title or "").split())[:TITLE_LENGTH]
        return f"{self.prompt} {CONTEXT_PROMPT.format(title=title)}" if self.context and title else self.prompt


def _tidy(answer: str) -> str | Failure:
    """Returns one line, without the courtesies before a colon and without quotation marks around it."""
    text = _CHATTER.sub("", " ".join(answer.split()), count=1).strip(" \"'“”*")
    return text or Failure("model_refused", "the model gave an empty answer")
