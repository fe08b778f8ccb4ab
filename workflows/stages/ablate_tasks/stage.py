"""Ablation: what each task of the language model adds to recommending, and what semantic IDs with pictures in them do.

Every arm is the same language model, fitted from several seeds: on one task, two, … all, over the run's own semantic
IDs; and over the original ones, of text alone, on the tasks that read no captions (TriAlignGR, arXiv 2605.05249,
research questions 3 and 4). All are asked the same test queries for the next item, and each its tasks on held-out
examples.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from models.generation.tasks import load_tasks
from models.recommenders.settings import LanguageModelSettings, check_backbone
from workflows.engine.stage import Context, Resources, Result, Stage, StageConfig

Budget = Literal["steps", "main"]


class Config(StageConfig):
    """Settings of the ablate_tasks stage.

    Attributes:
        sequential: the language model with all tasks, in the order in which they are added: the main one first, those
            that read captions last.
        budget: what all arms have alike beside their steps: `steps`: the documents of a step; `main`: those among them
            that are of the main task, on average, so that a step has as many times more documents as there are tasks.
        seeds: from which each arm is fitted.
        filter_seen: leave what a user has met out of their lists, and out of what is asked.
        queries: of the test split, at most, the same for all arms.
        examples: of each task that are asked, at most.
        bootstrap: resamples of users and seeds behind every interval.
        workers: models that are fitted side by side, each on one CPU.
    """

    resources: ClassVar[frozenset[str]] = frozenset({"workers"})

    sequential: LanguageModelSettings = Field(default_factory=lambda: LanguageModelSettings(tasks=load_tasks()))
    budget: Budget = "steps"
    seeds: int = Field(3, ge=2)
    filter_seen: bool = True
    queries: int = Field(2_000, ge=1)
    examples: int = Field(100, ge=2)
    bootstrap: int = Field(200, ge=10)
    workers: int = Field(2, ge=1)

    @field_validator("sequential")
    @classmethod
    def _adds_tasks_to_the_main_one(cls, settings: LanguageModelSettings) -> LanguageModelSettings:
        if len(settings.tasks) < 2:
            raise ValueError("tasks are added to the main one: name two or more under tasks")
        if settings.trained_tasks[0] != settings.recommending_task:
            raise ValueError("the first task is in every arm and has to recommend: name sids_to_sid first")
        reads = ["caption" in task.inputs for task in settings.trained_tasks]
        if reads != sorted(reads):
            raise ValueError("the arm of text alone has the first tasks: name those that read captions last")
        return settings

    def reads_split(self) -> bool:
        """The models learn from its training part."""
        return True


class AblateTasksStage(Stage[Config]):
    """Fits language models that differ in their tasks and semantic IDs, and compares how they recommend."""

    config_type = Config
    version = 1
    uses = ("generate",)  # its models are fitted as the language model of generate
    reads = ("ingest", "interpret", "project", "quantize")

    def check(self, config: Config, root: str) -> None:
        """Find a backbone that is not there."""
        check_backbone(config.sequential)

    def resources(self, config: Config) -> Resources | None:
        """Count the fits that run side by side, one CPU each."""
        return Resources(float(config.workers))

    def run(self, config: Config, context: Context) -> Result:
        """Fit every arm from every seed, and write metrics/ablate_tasks.json."""
        from models.recommenders.fitting import require_queries
        from workflows.distributed.training import fit
        from workflows.stages.ablate_tasks import scores, variants
        from workflows.stages.ablate_tasks.original_sids import write_original
        from workflows.stages.generate.build import require_learnable

        run = context.run
        data = variants.read_queries(config, run, context.split, seed=context.seed)
        for name, queries in (("validation", data.valid), ("test", data.test)):
            require_queries(queries, name)
        require_learnable(config.sequential, run, data, seed=context.seed)
        folder = run.uri("checkpoints", "ablate_tasks", context.fingerprint, "scores")
        arms = variants.make_arms(config.sequential)
        if not write_original(context, variants.original_of(folder)):
            context.log("left out, since no item has a title or a description: semantic IDs of text alone")
            arms = tuple(arm for arm in arms if arm.sids == variants.OWN)
        seeds = [context.seed + number for number in range(config.seeds)]
        jobs = [(arm.name, seed) for seed in seeds for arm in arms]
        fit(
            variants.loop,
            {
                "root": run.root,
                "split": context.split.model_dump(mode="json"),
                "settings": config.model_dump(mode="json"),
                "folder": folder,
                "jobs": jobs,
                "seed": context.seed,
            },
            workers=config.workers,
            run=run,
            name=f"ablate_tasks/{context.fingerprint}",
            progress=lambda metrics: context.progress(metrics["done"], len(jobs)),
        )
        metrics = scores.judge(folder, config, arms, seeds, data.test, seed=context.seed)
        run.write_json(metrics, "metrics", "ablate_tasks.json")
        for sentence in metrics["sentences"]:
            context.log(sentence)
        return Result(rows_in=len(jobs), rows_out=len(jobs), metrics=metrics)
