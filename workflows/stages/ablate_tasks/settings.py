"""Settings of the ablate_tasks stage."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from models.recommenders.settings import LanguageModelSettings
from workflows.engine.stage import StageConfig


class Config(StageConfig):
    """Settings of the ablate_tasks stage.

    Attributes:
        language_model: its tasks stand in the order in which they are added: the main one first, those
            that read captions last.
        seeds: number of seeds that each variant is fitted from.
        filter_seen: leave the items that a user has met out of the lists and out of the queries.
        queries: of the test split, at most, the same for all variants.
        examples: held-out examples of each task, at most.
        bootstrap: resamples of users and seeds behind every interval.
        workers: models that are fitted side by side, each on one CPU.
    """

    resources: ClassVar[frozenset[str]] = frozenset({"workers"})

    language_model: LanguageModelSettings = Field(default_factory=lambda: LanguageModelSettings(tasks="all"))
    seeds: int = Field(3, ge=2)
    filter_seen: bool = True
    queries: int = Field(2_000, ge=1)
    examples: int = Field(100, ge=2)
    bootstrap: int = Field(200, ge=10)
    workers: int = Field(2, ge=1)

    @field_validator("language_model")
    @classmethod
    def _adds_tasks_to_the_main_one(cls, settings: LanguageModelSettings) -> LanguageModelSettings:
        if len(settings.tasks) < 2:
            raise ValueError("tasks are added to the main one: name two or more under tasks")
        if settings.trained_tasks[0] != settings.recommending_task:
            raise ValueError("the first task is in every variant and has to recommend: name sids_to_sid first")
        if settings.schedule == "content_first":
            raise ValueError("it takes documents from the main task where others are added: set schedule to joint")
        reads = ["caption" in task.inputs for task in settings.trained_tasks]
        if reads != sorted(reads):
            raise ValueError("the variant of text alone has the first tasks: name those that read captions last")
        return settings

    def reads_split(self) -> bool:
        """Returns True: the models learn from the training part of the split."""
        return True
