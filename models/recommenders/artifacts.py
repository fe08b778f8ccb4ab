"""Fitted recommenders on disk, told apart by `kind` in their config.json."""

from __future__ import annotations

from models.common.devices import own_device
from models.common.recommender import Recommender
from models.recommenders.item_knn import ItemKnn
from models.recommenders.language_model import LanguageModelRecommender
from models.recommenders.next_item import NextItemModel
from models.recommenders.product_codes import ProductCodes
from models.recommenders.sasrec import SasRec
from storage import files
from storage.artifacts import load_model
from storage.errors import UserError

NEXT_ITEM_MODELS: dict[str, type[SasRec] | type[ProductCodes]] = {model.kind: model for model in (SasRec, ProductCodes)}


def load(uri: str) -> Recommender:
    """Loads a fitted recommender, on the GPU of this process where it has one, ready to recommend.

    Args:
        uri: the artifact's folder; nothing else of the run is read.

    Raises:
        UserError: there is none at `uri`, it is damaged, or it is of another kind or version.
    """
    try:
        kind = files.read_json(files.join(uri, "config.json")).get("kind")
    except FileNotFoundError as error:
        raise UserError(f"There is no recommender at {uri}: run the stage generate first.") from error
    except (ValueError, AttributeError) as error:
        raise UserError(f"The recommender at {uri} is damaged: run the stage generate again.") from error
    if kind not in (*NEXT_ITEM_MODELS, ItemKnn.kind, LanguageModelRecommender.kind):
        raise UserError(f"{uri} holds a {kind}, which is no recommender of this version: run the stage generate again.")
    config, tensors = load_model(uri, kind)
    try:
        if kind == LanguageModelRecommender.kind:
            return LanguageModelRecommender.from_artifact(uri, config, tensors, own_device())
        if kind == ItemKnn.kind:
            return ItemKnn.from_artifact(config, tensors)
        model: NextItemModel = NEXT_ITEM_MODELS[kind].from_artifact(config, tensors)
    except (ValueError, RuntimeError, LookupError, TypeError) as error:
        raise UserError(
            f"The recommender at {uri} is damaged or of another version: run the stage generate again."
        ) from error
    return model.eval().to(own_device())
