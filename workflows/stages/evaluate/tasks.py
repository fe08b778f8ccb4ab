"""How well the sequential generator does each of its tasks on what it did not learn from."""

from __future__ import annotations

from typing import Any

from models.generation.heldout import HeldOut, task_scores
from workflows.engine.stage import Context
from workflows.stages.generate.recommenders import SEQUENTIAL, load_sequential, make_corpus, read_data

EXAMPLES = 300  # per task


def score_tasks(context: Context) -> dict[str, Any]:
    """Held-out scores by task, see `models.generation.heldout.task_scores`; empty without a generator that reads text.

    Tasks about content are asked about items that were held out of them, recommending tasks about the test split.
    """
    run = context.run
    uri = run.uri("models", "generator", SEQUENTIAL)
    generated = run.read_json("metrics", "generate.json")
    if SEQUENTIAL not in generated["history"]:
        return {}
    settings, recommender = load_sequential(uri)
    if not settings.tasks:
        return {}
    data = read_data(run, context.split, **generated["queries"])
    corpus = make_corpus(settings, run, data, recommender.model.vocabulary, seed=context.seed)
    held_out = HeldOut(corpus.held_out.nonzero()[:, 0], data.test.histories, data.test.target)
    return task_scores(
        recommender.model, recommender.trie, corpus, settings.learned, held_out, most=EXAMPLES, seed=context.seed
    )
