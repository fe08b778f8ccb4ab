"""Weights by their folder: which they are, the model in this process, and what it reads of pictures."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from models.common.devices import own_device
from models.qformer.model import CaptionModel, load_captioner
from models.qformer.vision import look
from storage.artifacts import model_digest
from storage.errors import UserError

ROWS = 32  # of a call, always: matrix products of other shapes add up in another order


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


def weights_digest(weights: str) -> str:
    """Returns a digest of weights.

    Raises:
        UserError: there are none.
    """
    found = model_digest(weights)
    if found is None:
        raise UserError(f"There is no captioner at {weights}: make one with `tesserec adapt captioner`.")
    return found


@functools.cache
def loaded(weights: str) -> CaptionModel:
    """Returns the model of weights, in evaluation mode, on this process's device; loaded once."""
    return load_captioner(weights).to(own_device())
