"""Evidence: whether captions help a ranker, by arms that differ in what they read, controls, seeds and intervals.

Every arm is fitted from several seeds on the same examples and scored on the same test split; where the catalogue knows
the truth, also on the true click probabilities of users × items that training never saw.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, field_validator

from models.evaluation.variants import TRUTH
from models.ranking.settings import RankerSettings
from workflows.engine.stage import Context, Resources, Result, Stage, StageConfig
from workflows.stages.ablate_features.variants import ARMS, ID, require_truth, told_nothing, truth_of_items


class Config(StageConfig):
    """Settings of the ablate_features stage."""

    resources: ClassVar[frozenset[str]] = frozenset({"workers"})

    arms: tuple[str, ...] | None = Field(
        None, description="names of workflows.stages.ablate_features.variants.ARMS; all that the catalogue allows"
    )
    seeds: int = Field(5, ge=2)
    bootstrap: int = Field(200, ge=10, description="resamples behind every interval")
    users: int = Field(500, ge=10, description="users whose true probabilities are asked")
    workers: int = Field(2, ge=1, description="rankers that are fitted side by side")
    ranker: RankerSettings = RankerSettings()

    @field_validator("arms", mode="before")
    @classmethod
    def _null_is_a_name(cls, arms: Any) -> Any:
        """YAML reads a bare null as nothing."""
        return [arm if arm is not None else "null" for arm in arms] if isinstance(arms, list) else arms

    @field_validator("arms")
    @classmethod
    def _known(cls, arms: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for arm in arms or ():
            if arm not in ARMS:
                raise ValueError(f"there is no arm {arm!r}: choose from {', '.join(ARMS)}")
        if arms is not None and len(set(arms)) < len(arms):
            raise ValueError("an arm is named twice: name each once")
        if arms is not None and ID not in arms:
            raise ValueError(f"the arm {ID!r} is what all others are compared with: add it")
        return arms


class AblateFeaturesStage(Stage[Config]):
    """Fits rankers that differ in the features they read, with controls and seeds, and compares them by intervals."""

    config_type = Config
    version = 2
    uses = ("rank",)  # its rankers are fitted as those of rank
    reads = ("ingest", "interpret", "project", "features")

    def resources(self, config: Config) -> Resources | None:
        """Count the fits that run side by side, one CPU each."""
        return Resources(float(config.workers))

    def run(self, config: Config, context: Context) -> Result:
        """Fit every arm from every seed, and write metrics/ablate_features.json."""
        from workflows.distributed.training import fit
        from workflows.stages.ablate_features import scores

        if TRUTH in (config.arms or ()):
            require_truth(context.catalog)  # now, and not when its turn comes
        told = truth_of_items(context.catalog) is not None
        arms = config.arms or tuple(name for name in ARMS if told or name != TRUTH)
        items = context.run.read_table("features", "items")
        silent = [name for name in arms if told_nothing(ARMS[name], items, context.run)]
        if silent:
            context.log(f"left out, since no item has what they read: {', '.join(silent)}")
        arms = tuple(name for name in arms if name not in silent)
        seeds = [context.seed + number for number in range(config.seeds)]
        folder = context.run.uri("checkpoints", "ablate_features", context.fingerprint, "scores")
        jobs = [(arm, seed) for seed in seeds for arm in arms]
        fit(
            scores.loop,
            {
                "root": context.run.root,
                "catalog": context.catalog,
                "scores": folder,
                "settings": config.ranker.model_dump(mode="json"),
                "jobs": jobs,
                "users": config.users,
                "seed": context.seed,
            },
            workers=config.workers,
            run=context.run,
            name=f"ablate_features/{context.fingerprint}",
            progress=lambda metrics: context.progress(metrics["done"], len(jobs)),
        )
        metrics = scores.judge(context, folder, arms, seeds, users=config.users, draws=config.bootstrap)
        context.run.write_json(metrics, "metrics", "ablate_features.json")
        for part in ("test", "test_cold", "truth_cold"):
            for sentence in metrics.get(part, {}).get("sentences", ()):
                context.log(f"{part}: {sentence}")
        return Result(rows_in=len(jobs), rows_out=len(jobs), metrics=metrics)
