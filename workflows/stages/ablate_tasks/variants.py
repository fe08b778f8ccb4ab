"""The variants: a language model on more and more tasks, and on semantic IDs of text alone."""

from __future__ import annotations

from dataclasses import dataclass

from models.evaluation.variants import Variant
from models.recommenders.settings import LanguageModelSettings

OWN, ORIGINAL = "own", "original"  # semantic IDs of the run; those of text alone


@dataclass(frozen=True)
class TaskVariant(Variant):
    """A language model that learns the first so many tasks.

    Attributes:
        sids: whose semantic IDs it speaks, OWN or ORIGINAL.
        tasks: number of tasks.
    """

    sids: str
    tasks: int


def variant_of(sids: str, tasks: int) -> TaskVariant:
    """Returns the variant that learns the first so many tasks on some semantic IDs."""
    whose = "the run's semantic IDs" if sids == OWN else "semantic IDs of text alone"
    return TaskVariant(f"{sids}-{tasks}", f"{tasks} tasks on {whose}", sids, tasks)


def text_tasks(settings: LanguageModelSettings) -> int:
    """Returns the number of tasks before the first one that reads captions."""
    reads = ["caption" in task.inputs for task in settings.trained_tasks]
    return reads.index(True) if True in reads else len(reads)


def make_variants(settings: LanguageModelSettings) -> dict[str, TaskVariant]:
    """Returns by name one task on the run's semantic IDs, two, … all; and the original ones with those of text."""
    own = [variant_of(OWN, count + 1) for count in range(len(settings.tasks))]
    return {variant.name: variant for variant in (*own, variant_of(ORIGINAL, text_tasks(settings)))}


def main_documents(settings: LanguageModelSettings) -> int:
    """Returns how many documents of a step are of the main task."""
    return max(1, round(settings.main_share * settings.fit.batch_size))


def variant_settings(settings: LanguageModelSettings, variant: TaskVariant) -> LanguageModelSettings:
    """Returns the language model of a variant, and its fit.

    All variants have equally many documents of the main task, on average: with that task alone a step has no others.
    """
    fit = settings.fit
    if variant.tasks == 1:
        fit = fit.model_copy(update={"batch_size": main_documents(settings)})
    return settings.model_copy(update={"tasks": settings.tasks[: variant.tasks], "fit": fit})
