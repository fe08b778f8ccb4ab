"""The interface of language models: prompts in, one answer or one failure for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np


@dataclass(frozen=True)
class Prompt:
    """One question, answered independently of all others.

    Attributes:
        text: the user's message.
        system: the system message before it; empty for none.
        images: the pictures that go with the message, uint8 [H, W, 3] each.
    """

    text: str
    system: str = ""
    images: tuple[np.ndarray, ...] = ()


class Failure(NamedTuple):
    """Why one prompt has no answer. `code` is stable and ends in rejects/; `detail` is one sentence."""

    code: str
    detail: str


class Chat(Protocol):
    """A language model. Implementations are backends; see `models.common.settings.Backend`."""

    def load(self) -> None:
        """Loads weights or open the client; once per process, a second call is a no-op.

        Raises:
            UserError: the settings cannot work (no such model, no key in the environment, a package is missing).
        """

    def complete(self, prompts: Sequence[Prompt]) -> list[str | Failure]:
        """Answers prompts, in their order.

        Raises:
            UserError: no prompt can be answered under these settings (the key is refused, the model is not served).
        """
