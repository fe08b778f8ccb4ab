"""Settings of the adaptation of the captioner."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from models.qformer.settings import Architecture, Recipe
from models.qformer.weights import SHIPPED, Source, weights_digest
from storage.identity import identity
from workflows.engine.stage import WorkersConfig
from workflows.stages.interpret.stage import Fetch

SCRATCH = "scratch"


class Config(WorkersConfig):
    """Settings of adapt_captioner.

    Attributes:
        base: weights to begin with: `shipped`, the folder of a captioner, or `scratch` for none.
        architecture: sizes of a captioner from scratch.
        recipe: how it is trained.
        items: pictures to learn from, at most; those whose ids have the lowest hashes.
        held_out: share of them that is kept from training: one half chooses the weights, the other is for the report.
        views: of each picture, the plain one and others; each costs a pass of the image encoder, and some 130 kB of
            disk until the stage ends.
        max_degraded_share: share of the pictures that may fail to decode.
        fetch: where media may lie, and how much of them is used.
        commit_rows, no_progress_timeout_s: of the stream of pictures, see interpret.
    """

    base: Literal["scratch"] | Source = SHIPPED
    architecture: Architecture = Architecture()
    recipe: Recipe = Recipe()
    items: int = Field(20_000, ge=100)
    held_out: float = Field(0.1, gt=0, lt=1)
    views: PositiveInt = 2
    fetch: Fetch = Fetch()
    max_degraded_share: float = Field(0.5, ge=0, le=1)
    cpus_per_worker: PositiveFloat = 2
    commit_rows: PositiveInt = 64
    no_progress_timeout_s: PositiveFloat = 900.0

    resources: ClassVar[frozenset[str]] = WorkersConfig.resources | {
        "commit_rows",
        "no_progress_timeout_s",
        "max_degraded_share",
    }

    def identity(self) -> dict[str, Any]:
        """Returns the settings that results depend on, and which weights the base is."""
        fetch = identity(self.fetch.operator("", ()))
        base = None if self.base == SCRATCH else weights_digest(self.base)
        return {**super().identity(), "fetch": fetch, "base": base}

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.base != SCRATCH and self.architecture != Architecture():
            raise ValueError("architecture is that of the base: leave it out, or set base to scratch")
        if min(self.recipe.align.batch_size, self.recipe.write.batch_size) < self.workers:
            raise ValueError(f"batch_size must be at least that of the workers, {self.workers}")
        return self
