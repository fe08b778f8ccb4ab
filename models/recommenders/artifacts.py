"""Fitted recommenders on disk, told apart by `kind` in their config.json."""

from __future__ import annotations

from typing import Any

import torch

from models.common.devices import own_device
from models.common.recommender import Recommender
from models.recommenders.ensemble import Ensemble
from models.recommenders.item_knn import ItemKnn
from models.recommenders.language_model import LanguageModelRecommender
from models.recommenders.next_item import NextItemModel
from models.recommenders.product_codes import ProductCodes
from models.recommenders.rescoring import DENSE, GENERATOR, Rescored
from models.recommenders.rpg import Rpg
from models.recommenders.sasrec import SasRec
from storage import files
from storage.artifacts import load_model, load_one_of, rebuilding

NEXT_ITEM_MODELS: dict[str, type[NextItemModel]] = {model.kind: model for model in (SasRec, ProductCodes, Rpg)}


def load(uri: str) -> Recommender:
    """Loads a fitted recommender, on the GPU of this process where it has one, ready to recommend.

    Args:
        uri: the artifact's folder; nothing else of the run is read.

    Raises:
        ArtifactError: there is none at `uri`, it is damaged, or it is of another kind or version.
    """
    with rebuilding(uri, "recommender"):
        kinds = (*NEXT_ITEM_MODELS, ItemKnn.kind, LanguageModelRecommender.kind, Rescored.kind, Ensemble.kind)
        kind, config, tensors = load_one_of(uri, kinds, "recommender")
        if kind == LanguageModelRecommender.kind:
            return LanguageModelRecommender.from_artifact(uri, config, tensors, own_device())
        if kind == Rescored.kind:
            return Rescored(*(load(files.join(uri, part)) for part in (GENERATOR, DENSE)))  # type: ignore[arg-type]
        if kind == ItemKnn.kind:
            return ItemKnn.from_artifact(config, tensors)
        if kind == Ensemble.kind:
            parts = [(name, *load_model(files.join(uri, name), name)) for name in config["members"]]
            return Ensemble([_next_item_model(*part) for part in parts], tensors["weights"].tolist())
        return _next_item_model(kind, config, tensors)


def _next_item_model(kind: str, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> NextItemModel:
    return NEXT_ITEM_MODELS[kind].from_artifact(config, tensors).eval().to(own_device())
