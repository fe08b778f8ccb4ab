"""Measures how well the language model does each of its tasks on what it did not learn from."""

from __future__ import annotations

from typing import Any

from models.common.recommender import Queries
from models.generation.examples import Corpus
from models.generation.heldout import task_scores
from models.recommenders.language_model import LanguageModelRecommender
from workflows.engine.stage import Context
from workflows.stages.generate.build import load_recommender, read_corpus
from workflows.stages.generate.data import read_data

EXAMPLES = 300  # per task


def score_tasks(context: Context) -> dict[str, Any]:
    """Returns held-out scores by task, see `models.generation.heldout.task_scores`.

    Tasks about content are scored on items that were held out of them, recommending tasks on the test split. Empty
    where no language model that reads text was fitted.
    """
    run, name = context.run, LanguageModelRecommender.kind
    generated = run.read_json("metrics", "generate.json")
    if name not in generated["history"]:
        return {}
    recommender = load_recommender(run, name)
    if not isinstance(recommender, LanguageModelRecommender) or not recommender.settings.tasks:
        return {}
    data = read_data(run, context.split, **generated["queries"])
    vocabulary = recommender.model.vocabulary
    corpus = read_corpus(recommender.settings, run, data, seed=context.seed, vocabulary=vocabulary)
    return held_out_scores(recommender, corpus, data.test, most=EXAMPLES, seed=context.seed)


def held_out_scores(
    recommender: LanguageModelRecommender, corpus: Corpus, test: Queries, *, most: int, seed: int
) -> dict[str, Any]:
    """Returns the scores of every task that a language model was trained on, by task.

    Args:
        recommender: the language model.
        corpus: what it was fitted on, and the items held out of that.
        test: queries, for its recommending tasks.
        most: examples of a task.
        seed: of the sample of examples.
    """
    tasks = recommender.settings.trained_tasks
    return task_scores(recommender.model, recommender.trie, corpus, tasks, test, most=most, seed=seed)
