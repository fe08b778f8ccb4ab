"""The small multimodal language model of this project as a captioner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from pydantic import PositiveInt

from models.captioning.captioner import Context
from models.chat.base import Failure
from models.qformer.weights import QFormerBackend, loaded, seen


@dataclass(frozen=True)
class QFormerCaptioner(QFormerBackend):
    """The small multimodal language model of this project: see `models.qformer`.

    Attributes:
        beams: of the search for a caption; 1 takes the likeliest word each time.
    """

    beams: PositiveInt = 1

    @property
    def reads(self) -> tuple[str, ...]:
        """Names nothing: a caption is of the picture alone."""
        return ()

    def caption(self, images: Sequence[np.ndarray], contexts: Sequence[Context]) -> list[str | Failure]:
        """Describes pictures; an empty sentence is a failure with the code `no_caption`."""
        model = loaded(self.weights)
        written = [model.decoder.write(queries, beams=self.beams)[:rows] for queries, rows in seen(model, list(images))]
        texts = chain.from_iterable(written)
        return [f"{text[0].upper()}{text[1:]}" if text else Failure("no_caption", "no words") for text in texts]
