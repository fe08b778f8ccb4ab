"""The small multimodal language model of this project as a captioner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from pydantic import PositiveInt

from models.captioning.captioner import Context
from models.chat.base import Failure
from models.common.settings import Backend, Folder
from models.qformer.weights import load, loaded, seen, weights_digest


@dataclass(frozen=True)
class QFormerCaptioner(Backend):
    """The small multimodal language model of this project: see `models.qformer`.

    Attributes:
        weights: folder of a captioner, as `tesserec adapt captioner` writes it.
        beams: of the search for a caption; 1 takes the likeliest word each time.
    """

    weights: Folder
    beams: PositiveInt = 1

    backend = "qformer"
    place = "gpu"

    @property
    def version(self) -> str:
        """The version of the code and of the weights, wherever they lie."""
        return f"1 {weights_digest(self.weights)}"

    @property
    def reads(self) -> tuple[str, ...]:
        """Names nothing: a caption is of the picture alone."""
        return ()

    def check(self) -> None:
        """Finds out whether the weights are there.

        Raises:
            UserError: they are not.
        """
        weights_digest(self.weights)

    def load(self) -> None:
        """Loads the model.

        Raises:
            ArtifactError: the weights are damaged.
        """
        load(self.weights)

    def caption(self, images: Sequence[np.ndarray], contexts: Sequence[Context]) -> list[str | Failure]:
        """Describes pictures; an empty sentence is a failure with the code `no_caption`."""
        model = loaded(self.weights)
        written = [model.decoder.write(queries, beams=self.beams)[:rows] for queries, rows in seen(model, list(images))]
        texts = chain.from_iterable(written)
        return [f"{text[0].upper()}{text[1:]}" if text else Failure("no_caption", "no words") for text in texts]
