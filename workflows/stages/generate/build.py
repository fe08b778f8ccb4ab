"""Builds a run's recommenders: what is fitted from its tables, and what was fitted from its artifacts."""

from __future__ import annotations

from typing import cast

import numpy as np
import pyarrow as pa
import torch

from models.common.jagged import Jagged
from models.common.recommender import Queries, Recommender
from models.generation.examples import Corpus
from models.generation.language import LanguageModel
from models.generation.vocabulary import Vocabulary
from models.recommenders import build
from models.recommenders.artifacts import load
from models.recommenders.cold_bonus import fit_cold_bonus
from models.recommenders.ensemble import Ensemble, fit_ensemble
from models.recommenders.fitting import TrainingTask
from models.recommenders.item_knn import fit_item_knn
from models.recommenders.language_model import LanguageModelRecommender
from models.recommenders.next_item import NextItemModel
from models.recommenders.product_codes import ProductCodes
from models.recommenders.product_quantizer import Quantized
from models.recommenders.rpg import Rpg
from models.recommenders.sasrec import SasRec
from models.recommenders.settings import (
    CodesSettings,
    EnsembleSettings,
    ItemKnnSettings,
    LanguageModelSettings,
    ProductCodesSettings,
    RpgSettings,
    SasRecSettings,
)
from models.recommenders.warm import go_on, take_over, wide_enough
from operators.columns import matrix_of, positions
from operators.features.ranker_inputs import aligned, read_embeddings
from operators.log.collaborative import collaborative_vectors
from operators.log.split import Split
from storage.artifacts import load_model, save_model
from storage.hashing import draw_uniform, hash_strings
from storage.run import RunDir
from workflows.engine.stage import Context
from workflows.stages.generate.data import Data, read_sids, read_texts
from workflows.stages.generate.earlier import CODES, Earlier, artifact_uri, codes_uri


def write_codes(
    run: RunDir,
    settings: CodesSettings,
    ids: pa.ChunkedArray,
    split: Split,
    *,
    seed: int,
    earlier: Earlier | None = None,
) -> None:
    """Quantises the items for a recommender; writes codes and codewords to models/generator/codes, under its name.

    Where an earlier run has as many codes of as many codewords, these stay, and new items get theirs among them.

    Raises:
        UserError: the catalogue has fewer items than codewords.
    """
    uri = codes_uri(run, settings.name)
    if earlier is not None and (before := earlier.codes(settings)) is not None:
        content = build.scaled(aligned(ids, read_embeddings(run)).numpy())
        save_model(uri, CODES, {}, go_on(before, earlier.rows, content)._asdict())
        return
    chosen, drawn = None, None
    if isinstance(settings, ProductCodesSettings) and settings.collaborative and len(ids) >= settings.codewords:
        table = collaborative_vectors(run, split, width=settings.width, seed=seed)
        chosen = np.full((len(ids), table["vector"].type.list_size), np.nan, np.float32)
        chosen[positions(table["item_id"], ids)] = matrix_of(table["vector"])
        drawn = draw_uniform(hash_strings(ids), seed) < settings.imputed
    embeddings = aligned(ids, read_embeddings(run)).numpy()
    quantized = build.quantize_items(settings, embeddings, chosen, drawn=drawn, seed=seed)
    save_model(uri, CODES, {}, quantized._asdict())


def write_item_knn(
    settings: ItemKnnSettings, run: RunDir, data: Data, valid: Queries, name: str, *, filter_seen: bool
) -> dict[str, int]:
    """Counts what users chose together, and writes the recommender of that name; the training positives are held."""
    found = fit_item_knn(settings, data.sequences, len(data.item_ids), valid, filter_seen=filter_seen)
    found.save(artifact_uri(run, name))
    return {"items": len(data.item_ids)}


def write_cold_bonus(run: RunDir, data: Data, valid: Queries, name: str, *, filter_seen: bool) -> tuple[float, int]:
    """Chooses the bonus of items without an event for a model of whole items that a run has fitted, and keeps it there.

    Returns:
        See `fit_cold_bonus`.
    """
    model = cast("NextItemModel", load_recommender(run, name))
    counts = data.sequences.values.bincount(minlength=len(data.item_ids))
    found = fit_cold_bonus(model, counts, valid, filter_seen=filter_seen)
    model.save(artifact_uri(run, name), model.state_dict())
    return found


def write_ensemble(settings: EnsembleSettings, run: RunDir, valid: Queries, *, filter_seen: bool) -> dict[str, float]:
    """Chooses the weights of recommenders that a run has fitted; writes the ensemble and returns them by name."""
    loaded = (load_recommender(run, name) for name in settings.of)
    members = [model for model in loaded if isinstance(model, NextItemModel)]
    found = fit_ensemble(members, settings.parts, valid, filter_seen=filter_seen)
    found.save(artifact_uri(run, Ensemble.kind))
    return {model.kind: weight for model, weight in found.weighed}


def training_task(
    settings: SasRecSettings | ProductCodesSettings | RpgSettings | LanguageModelSettings,
    run: RunDir,
    data: Data,
    *,
    seed: int,
    earlier: Earlier | None = None,
) -> TrainingTask:
    """Returns the fit of a recommender by its settings, from the weights of an earlier run where they fit."""
    if isinstance(settings, LanguageModelSettings):
        known, vocabulary = language_model_of(settings, run, data, earlier) or (None, None)
        corpus = read_corpus(settings, run, data.item_ids, data.sequences, seed=seed, vocabulary=vocabulary)
        return build.language_model_task(settings, corpus, data.valid, seed=seed, earlier=known)
    torch.manual_seed(seed)
    counts = data.sequences.values.bincount(minlength=len(data.item_ids))
    if isinstance(settings, SasRecSettings):
        model: NextItemModel = SasRec(settings.model, counts)
    else:
        quantized = Quantized(**load_model(codes_uri(run, settings.name), CODES)[1])
        if isinstance(settings, RpgSettings):
            model = Rpg(settings.model, quantized.codes, quantized.codewords.shape[1], counts)
        else:
            embeddings = aligned(data.item_ids, read_embeddings(run)).numpy() if settings.model.content else None
            content = None if embeddings is None else torch.from_numpy(build.scaled(embeddings))
            model = ProductCodes(settings.model, quantized, counts, content)
    warm = False
    if earlier is not None and isinstance(before := earlier.recommender(model.kind), NextItemModel):
        warm = take_over(model, before.cpu(), earlier.rows, counts)
    task = build.next_item_task(model, data.sequences, settings.fit.batch_size, seed=seed)
    return task._replace(warm=warm)


def language_model_of(
    settings: LanguageModelSettings, run: RunDir, data: Data, earlier: Earlier | None
) -> tuple[LanguageModel, Vocabulary] | None:
    """Returns the language model of an earlier run and its vocabulary; None where another one is asked for now."""
    before = None if earlier is None else earlier.recommender(LanguageModelRecommender.kind)
    if not isinstance(before, LanguageModelRecommender):
        return None
    asked = ("backbone", "tasks", "text_tokens")
    if any(getattr(before.settings, name) != getattr(settings, name) for name in asked):
        return None
    sids = read_sids(run, data.item_ids)
    vocabulary = wide_enough(before.model.vocabulary, sids.sizes, suffixes=sids.suffixes)
    return None if vocabulary is None else (before.model.cpu(), vocabulary)


def read_corpus(
    settings: LanguageModelSettings,
    run: RunDir,
    ids: pa.ChunkedArray,
    sequences: Jagged,
    *,
    seed: int,
    vocabulary: Vocabulary | None = None,
) -> Corpus:
    """Returns what the language model learns from: a run's semantic IDs, texts and training sequences.

    Args:
        ids: of the items, in the order of their rows.
        sequences: of training.
        vocabulary: of a model that was fitted; None makes one.

    Raises:
        UserError: an item has no semantic ID, or a model that was trained before is not there.
    """
    sids, texts = read_sids(run, ids), read_texts(run, ids) if settings.tasks else []
    if vocabulary is None:
        vocabulary = build.make_vocabulary(settings, sids.sizes, texts, suffixes=sids.suffixes)
    return build.make_corpus(settings, vocabulary, sids.codes, texts, sequences, seed=seed)


def learnable(settings: LanguageModelSettings, context: Context, data: Data) -> LanguageModelSettings:
    """Returns the settings of what the language model can learn, before anything is fitted.

    Optional tasks that nothing can be learned from are left out, and a line says so.

    Raises:
        UserError: there is nothing to learn a task from, a row has no room for a history, two items share their
            semantic ID, or a model that was trained before is not there.
    """
    corpus = read_corpus(settings, context.run, data.item_ids, data.sequences, seed=context.seed)
    found = build.without_unlearnable(settings, corpus)
    if left_out := ", ".join(task.name for task in settings.tasks if task not in found.tasks):
        context.log(f"left out, since no item has the texts: {left_out}")
    build.check_learnable(found, corpus, seed=context.seed)
    return found


def load_recommender(run: RunDir, name: str) -> Recommender:
    """Loads a recommender that a run has fitted.

    Raises:
        ArtifactError: it is damaged, or was not fitted.
    """
    return load(artifact_uri(run, name))
