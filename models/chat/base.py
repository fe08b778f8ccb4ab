"""What a language model is to us: prompts in, one answer or one failure for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np


@dataclass(frozen=True)
class Prompt:
    """One question, answered without regard to any other.

    Attributes:
        text: what the user says.
        system: what the model is told before.
        images: pictures that the text speaks of, uint8 [H, W, 3].
    """

    text: str
    system: str = ""
    images: tuple[np.ndarray, ...] = ()


class Failure(NamedTuple):
    """Why one prompt has no answer. `code` is stable and ends in rejects/; `detail` is one sentence."""

    code: str
    detail: str


class Chat(Protocol):
    """A language model. Implementations are frozen dataclasses whose fields are their settings."""

    def load(self) -> None:
        """Load weights or open the client; once per process, a second call is a no-op.

        Raises:
            UserError: the settings cannot work (no such model, no key in the environment, a package is missing).
        """

    def complete(self, prompts: Sequence[Prompt]) -> list[str | Failure]:
        """Answer prompts, in their order.

        Raises:
            UserError: no prompt can be answered under these settings (the key is refused, the model is not served).
        """
