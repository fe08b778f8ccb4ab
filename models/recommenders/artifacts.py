"""Next-item models on disk."""

from __future__ import annotations

import torch

from models.recommenders.next_item import EncoderConfig, NextItemModel
from models.recommenders.product_codes import ParallelConfig, ParallelGenerator
from models.recommenders.product_quantizer import Digits
from models.recommenders.sasrec import SasRec
from storage.artifacts import load_model, save_model
from storage.errors import UserError

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
        config["digits"] = list(model.digit.shape[:2])
    save_model(uri, KIND, config, tensors)


def load_next_item(uri: str) -> NextItemModel:
    """A model on the CPU, in evaluation mode.

    Raises:
        UserError: there is none at `uri`, or it is damaged.
    """
    config, tensors = load_model(uri, KIND)
    try:
        model: NextItemModel
        if "digits" in config:
            settings, (digits, codewords) = ParallelConfig.model_validate(config["config"]), config["digits"]
            words = torch.zeros(digits, codewords, settings.dim // digits)
            model = ParallelGenerator(settings, Digits(tensors["codes"], words))
        else:
            model = SasRec(EncoderConfig.model_validate(config["config"]), items=config["items"])
        model.load_state_dict(tensors, assign=True)
    except (ValueError, RuntimeError, LookupError, TypeError) as error:
        raise UserError(
            f"The next-item model at {uri} is damaged or of another version: run the stage generate again."
        ) from error
    return model.eval()
