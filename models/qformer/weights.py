"""Weights by their folder: which they are, the model in this process, and what it reads of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models.common.devices import own_device
from models.common.settings import Backend, Folder
from models.qformer.model import CaptionModel, configured, load_captioner
from models.qformer.settings import Architecture
from models.qformer.vision import look
from storage.artifacts import model_digest
from storage.errors import ArtifactError, UserError

SHIPPED = "shipped"  # the weights for product photos that come with the package
Source = Literal["shipped"] | Folder
ROWS = 32  # of a call, always: matrix products of other shapes add up in another order

_models: dict[str, tuple[str, CaptionModel]] = {}  # by folder, with the digest that it had


def seen(model: CaptionModel, pictures: list[np.ndarray]) -> list[tuple[Tensor, int]]:
    """Returns what the queries read of pictures, [ROWS, queries, dim] in blocks, and how many rows of each count."""
    device = next(model.parameters()).device
    blocks = []
    for start in range(0, len(pictures), ROWS):
        features = torch.from_numpy(look(pictures[start : start + ROWS]))
        whole = torch.cat([features, features[-1:].expand(ROWS - len(features), -1)])
        with torch.inference_mode():
            blocks.append((model.see(whole.to(device)), len(features)))
    return blocks


def folder_of(weights: str) -> str:
    """Returns the folder of weights, wherever the package lies on this machine."""
    return str(Path(__file__).parent / "products") if weights == SHIPPED else weights


def read_config(weights: str) -> Architecture:
    """Returns the sizes of a captioner.

    Raises:
        UserError: there is none.
    """
    try:
        return configured(folder_of(weights))
    except ArtifactError as error:
        raise UserError(f"{error.problem}: make a captioner with `tesserec adapt captioner`.") from error


def weights_digest(weights: str) -> str:
    """Returns a digest of a captioner.

    Raises:
        UserError: there is none.
    """
    read_config(weights)
    return model_digest(folder_of(weights)) or ""


def load(weights: str) -> CaptionModel:
    """Returns the model of weights, in evaluation mode, on this process's device; read again if it has changed.

    Raises:
        ArtifactError: it is damaged.
    """
    digest = weights_digest(weights)
    if weights not in _models or _models[weights][0] != digest:
        _models[weights] = (digest, load_captioner(folder_of(weights)).to(own_device()))
    return _models[weights][1]


def loaded(weights: str) -> CaptionModel:
    """Returns the model that this process has loaded."""
    return _models[weights][1] if weights in _models else load(weights)


@dataclass(frozen=True)
class QFormerBackend(Backend):
    """What the backends on these weights have in common.

    Attributes:
        weights: `shipped`, or the folder of a captioner, as `tesserec adapt captioner` writes it.
    """

    weights: Source = SHIPPED

    backend = "qformer"
    place = "gpu"

    @property
    def version(self) -> str:
        """The version of the code and of the weights, wherever they lie."""
        return f"1 {weights_digest(self.weights)}"

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
