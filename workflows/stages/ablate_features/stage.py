"""The stage ablate_features: which features of items help the ranker, with controls, seeds and intervals.

Every variant is fitted from several seeds on the same examples and scored on the same test split; if the catalogue has
a known truth, also on the true click probabilities of users × items that training never saw.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from pydantic import Field, field_validator

from models.evaluation.variants import TRUTH
from models.ranking.settings import RankerSettings
from storage.errors import UserError
from workflows.catalogs.survey import Survey
from workflows.distributed.pools import Workers
from workflows.engine.stage import Context, Result, Stage, StageConfig
from workflows.stages.ablate_features.variants import (
    ID,
    VARIANTS,
    lacks_columns,
    lacks_inputs,
    require_truth,
    truth_of_items,
)


class Config(StageConfig):
    """Settings of the ablate_features stage."""

    resources: ClassVar[frozenset[str]] = frozenset({"workers"})

    variants: tuple[str, ...] | None = Field(
        None,
        description="names of ablate_features.variants.VARIANTS; null: all that the catalogue allows but long ones",
    )
    seeds: int = Field(5, ge=2)
    bootstrap: int = Field(200, ge=10, description="resamples behind every interval")
    users: int = Field(500, ge=10, description="users whose true probabilities are compared with")
    workers: int = Field(2, ge=1, description="rankers that are fitted side by side")
    ranker: RankerSettings = RankerSettings()

    @field_validator("variants", mode="before")
    @classmethod
    def _null_is_a_name(cls, names: Any) -> Any:
        """YAML reads a bare null as None."""
        return ["null" if name is None else name for name in names] if isinstance(names, list) else names

    @field_validator("variants")
    @classmethod
    def _known(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in names or ():
            if name not in VARIANTS:
                raise ValueError(f"there is no variant {name!r}: choose from {', '.join(VARIANTS)}")
        if names is not None and len(set(names)) < len(names):
            raise ValueError("a variant is named twice: name each once")
        if names is not None and ID not in names:
            raise ValueError(f"all others are compared with the variant {ID!r}: add it")
        return names


class AblateFeaturesStage(Stage[Config]):
    """Fits rankers that differ in the features they read, with controls and seeds, and compares them by intervals."""

    config_type = Config
    version = 4
    reads = ("ingest", "interpret", "project", "quantize", "features")

    def uses(self, config: Config) -> tuple[str, ...]:
        """Its rankers are fitted as those of rank."""
        return ("rank",)

    def check_data(self, config: Config, catalog: Survey) -> list[str]:
        """Finds variants that read what no item has.

        Raises:
            UserError: the definition names one of them.
        """
        if TRUTH in (config.variants or ()):
            require_truth(catalog.uri)
        lacking = ", ".join(name for name in config.variants or VARIANTS if lacks_columns(VARIANTS[name], catalog))
        if lacking and config.variants:
            raise UserError(f"No item has what these variants read: take {lacking} out of ablate_features.variants.")
        return [f"left out, since no item has what they read: {lacking}"] if lacking else []

    def workers(self, config: Config) -> Workers | None:
        """Returns the fits that run side by side, one CPU each."""
        return Workers(config.workers)

    def run(self, config: Config, context: Context) -> Result:
        """Fits every variant from every seed, and writes metrics/ablate_features.json."""
        from workflows.distributed.trials import run_trials
        from workflows.stages.ablate_features import scores

        run = context.run
        has_truth = truth_of_items(context.catalog) is not None
        names = config.variants or tuple(
            name for name, variant in VARIANTS.items() if variant.long == "none" and (has_truth or name != TRUTH)
        )
        items = run.read_table("features", "items")
        lacking = [name for name in names if lacks_inputs(VARIANTS[name], items, run)]
        if lacking:
            context.log(f"left out, since no item has what they read: {', '.join(lacking)}")
        examples = scores.read_examples(run, context.catalog, users=config.users)
        fitted = run_trials(
            partial(scores.score, config.ranker, examples, run, context.catalog),
            [name for name in names if name not in lacking],
            [context.seed + number for number in range(config.seeds)],
            folder=run.uri("checkpoints", "ablate_features", context.fingerprint, "scores"),
            at_once=config.workers,
            progress=context.progress,
        )
        metrics = scores.judge(fitted, examples, items, seed=context.seed, draws=config.bootstrap)
        run.write_json(metrics, "metrics", "ablate_features.json")
        for part in scores.PARTS:
            for sentence in metrics.get(part, {}).get("sentences", ()):
                context.log(f"{part}: {sentence}")
        trials = config.seeds * len(fitted)
        return Result(rows_in=trials, rows_out=trials, metrics=metrics)
