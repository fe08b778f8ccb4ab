"""Next-item models on disk."""

from __future__ import annotations

import torch
from pydantic import ValidationError

from models.nextitem.base import EncoderConfig, NextItemModel
from models.nextitem.parallel import ParallelConfig, ParallelGenerator
from models.nextitem.sasrec import SasRec
from storage.errors import UserError
from storage.weights import load_model, save_model

KIND = "next-item model"


def save_next_item(uri: str, model: NextItemModel, tensors: dict[str, torch.Tensor]) -> None:
    """Write an artifact.

    Args:
        uri: a folder.
        model: that was trained.
        tensors: of its state dict, whole.
    """
    config = {"config": model.config.model_dump(mode="json"), "items": model.items}
    if isinstance(model, ParallelGenerator):
        config["codewords"] = model.digit.shape[1]
    save_model(uri, KIND, config, tensors)


def load_next_item(uri: str) -> NextItemModel:
    """A model on the CPU, in evaluation mode.

    Raises:
        UserError: there is none at `uri`, or it is damaged.
    """
    config, tensors = load_model(uri, KIND)
    try:
        model: NextItemModel
        if "codewords" in config:
            settings = ParallelConfig.model_validate(config["config"])
            model = ParallelGenerator(settings, tensors["codes"], codewords=config["codewords"])
        else:
            model = SasRec(EncoderConfig.model_validate(config["config"]), items=config["items"])
        model.load_state_dict(tensors, assign=True)
    except (ValidationError, RuntimeError, LookupError, TypeError) as error:
        raise UserError(
            f"The next-item model at {uri} is damaged or of another version: run the stage generate again."
        ) from error
    return model.eval()
