"""Measures how well the language model does each of its tasks on what it did not learn from."""

from __future__ import annotations

from typing import Any

from models.generation.heldout import HeldOut, task_scores
from models.recommenders.artifacts import load
from models.recommenders.language_model import LanguageModelRecommender
from workflows.engine.stage import Context
from workflows.stages.generate.build import artifact_uri, read_corpus
from workflows.stages.generate.data import read_data

EXAMPLES = 300  # per task


def score_tasks(context: Context) -> dict[str, Any]:
    """Returns held-out scores by task, see `models.generation.heldout.task_scores`.

    Tasks about content are asked about items that were held out of them, recommending tasks about the test split. Empty
    where no language model that reads text was fitted.
    """
    run, name = context.run, LanguageModelRecommender.kind
    generated = run.read_json("metrics", "generate.json")
    if name not in generated["history"]:
        return {}
    recommender = load(artifact_uri(run, name))
    if not isinstance(recommender, LanguageModelRecommender) or not recommender.settings.tasks:
        return {}
    data = read_data(run, context.split, **generated["queries"])
    model, settings = recommender.model, recommender.settings
    corpus = read_corpus(settings, run, data, seed=context.seed, vocabulary=model.vocabulary)
    held_out = HeldOut(corpus.held_out.nonzero()[:, 0], data.test.histories, data.test.target)
    return task_scores(
        model, recommender.trie, corpus, settings.trained_tasks, held_out, most=EXAMPLES, seed=context.seed
    )
