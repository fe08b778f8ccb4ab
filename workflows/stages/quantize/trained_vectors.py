"""Item vectors of a SASRec that is fitted for this alone: what a quantizer may be aligned with."""

from __future__ import annotations

from functools import partial

import pyarrow as pa
import torch
from torch.nn import functional

from models.recommenders import fitting
from models.recommenders.sasrec import SasRecConfig
from models.recommenders.settings import SasRecSettings
from operators.columns import matrix_column
from storage import files
from workflows.engine.stage import Context
from workflows.stages.generate.build import training_task
from workflows.stages.generate.data import SMALL, Data, write_data
from workflows.stages.quantize.settings import Collaborative


def write_trained_vectors(config: Collaborative, context: Context, uri: str) -> None:
    """Writes vectors (item_id, vector) of length 1 of the items that training chooses, of the best state on validation.

    Raises:
        UserError: the log cannot be split so, or validation has no query.
    """
    settings = SasRecSettings(model=SasRecConfig(dim=config.width), fit=config.fit)
    shown, most = settings.model.length, {"valid": config.fit.valid_queries}
    data, positives = write_data(context, "quantize", history=shown, repeats=False, most=most)
    name = f"quantize/{context.fingerprint}/sasrec"
    context.pieces(partial(_fit, settings, data, uri, context.seed), ["vectors"], name=name, here=positives < SMALL)


def _fit(settings: SasRecSettings, data: Data, uri: str, seed: int, _: str) -> dict[str, int]:
    best: dict[str, torch.Tensor] = {}
    callbacks = fitting.Callbacks(
        lambda metrics, take: None,
        lambda learner, tensors: best.update({name: value.clone() for name, value in tensors.items()}),
    )
    fitting.fit(settings.fit, training_task(settings, data.run, data, seed=seed), data.valid, callbacks, seed=seed)
    known = best["item"].any(1)
    vectors = functional.normalize(best["item"][known], dim=1).numpy()
    ids = data.item_ids.filter(pa.array(known.numpy()))
    files.write_table(uri, pa.table({"item_id": ids, "vector": matrix_column(vectors)}))
    return {"items": len(ids)}
