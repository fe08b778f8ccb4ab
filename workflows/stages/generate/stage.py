"""Generate: fit the generators of next items, and the baseline that they have to beat, on Ray Train.

Writes models/generator/{parallel,sequential,sasrec}, models/generator/items (which item every row is),
models/generator/digits (the parallel semantic IDs) and metrics/generate.json.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from models.common.data_parallel import Strategy
from models.recommenders.settings import ParallelSettings, SasRecSettings, SequentialSettings, check_backbone
from storage import files
from storage.errors import UserError
from workflows.engine.stage import Context, Resources, Result, Stage, StageConfig, forget_other_attempts

GENERATORS = ("parallel", "sequential")


class Config(StageConfig):
    """Settings of the generate stage.

    Attributes:
        parallel, sequential: the generators; null leaves one out.
        sasrec: the baseline; null leaves it out.
        filter_seen: leave what a user has met out of their lists, and out of what is asked.
        compared: validation questions by which one of the generators is chosen, at most.
        workers, cpus_per_worker, use_gpu: processes that fit one model after the other, and what each of them gets.
        strategy: `ddp` keeps a model whole on each worker; `fsdp` shares it out.
        checkpoint_s: seconds between two states that a killed fit can go on from.
    """

    resources: ClassVar[frozenset[str]] = frozenset({"cpus_per_worker", "use_gpu", "strategy", "checkpoint_s"})

    parallel: ParallelSettings | None = ParallelSettings()
    sequential: SequentialSettings | None = SequentialSettings()
    sasrec: SasRecSettings | None = SasRecSettings()
    filter_seen: bool = True
    compared: int = Field(5_000, ge=1)
    workers: int = Field(1, ge=1)
    cpus_per_worker: float = Field(2, gt=0)
    use_gpu: bool = False
    strategy: Strategy = "ddp"
    checkpoint_s: float = Field(60.0, ge=0)

    @model_validator(mode="after")
    def _some_generator(self) -> Config:
        if self.parallel is None and self.sequential is None:
            raise ValueError("both generators are left out: keep parallel, or sequential")
        for name in ("sasrec", *GENERATORS):
            if (part := getattr(self, name)) is not None and part.course.batch_size < self.workers:
                least = f"set {name}.course.batch_size to {self.workers} or more"
                raise ValueError(f"a step is shared by {self.workers} workers: {least}")
        return self

    @property
    def history(self) -> int:
        """Items of a history that any of them reads."""
        lengths = [part.model.length for part in (self.parallel, self.sasrec) if part is not None]
        return max([*lengths, *([self.sequential.history] if self.sequential else [])])

    def reads_split(self) -> bool:
        """They learn from its training part."""
        return True


class GenerateStage(Stage[Config]):
    """Generate: fit the generators of next items, and the baseline that they have to beat, on Ray Train."""

    config_type = Config
    version = 1
    reads = ("ingest", "interpret", "project", "quantize")

    def check(self, config: Config, root: str) -> None:
        """Find a backbone that is not there."""
        if config.sequential is not None:
            check_backbone(config.sequential)

    def resources(self, config: Config) -> Resources | None:
        """Count the workers of the fits, which run one after the other."""
        return Resources(config.workers * config.cpus_per_worker, float(config.workers if config.use_gpu else 0))

    def run(self, config: Config, context: Context) -> Result:
        """Fit one model after the other; those that a killed attempt has finished are not fitted again."""
        from models.recommenders.fitting import NDCG, best_of, require_queries, sample, validate
        from workflows.stages.generate.recommenders import (
            load_recommender,
            read_data,
            require_learnable,
            save_items,
            write_digits,
        )

        run = context.run
        if not files.exists(run.uri("catalog", "interactions")):
            raise UserError("The catalogue has no interactions: leave generate and evaluate out of the stages.")
        data = read_data(run, context.split, history=config.history, repeats=not config.filter_seen)
        require_queries(data.valid, "validation")
        if config.sequential is not None:
            require_learnable(config.sequential, run, data, seed=context.seed)
        forget_other_attempts(context, "generate")  # what they wrote to models/ may be of other settings
        save_items(run, data.item_ids)
        if config.parallel is not None:
            write_digits(run, config.parallel, data.item_ids, context.split, seed=context.seed)
        names = [name for name in ("sasrec", *GENERATORS) if getattr(config, name) is not None]
        history = _fit(names, config, context)
        compared = sample(data.valid, config.compared, seed=context.seed)
        valid = {
            name: validate(load_recommender(run, name), compared, filter_seen=config.filter_seen) for name in history
        }
        chosen = max((name for name in GENERATORS if name in valid), key=lambda name: valid[name][NDCG])
        found = {"chosen": chosen, "queries": {"history": config.history, "repeats": not config.filter_seen}}
        run.write_json({**found, "valid": valid, "history": history}, "metrics", "generate.json")
        rows = len(data.sequences.values)
        best = {
            name: {**valid[name], "step": best_of(curve)["step"], "seconds": curve[-1]["seconds"]}
            for name, curve in history.items()
        }
        return Result(rows_in=rows, rows_out=rows, metrics={"chosen": chosen, **best})


def _fit(names: list[str], config: Config, context: Context) -> dict[str, list[dict[str, Any]]]:
    """The validations of every model's fit, in order; one start of Ray Train does for all of them."""
    from models.recommenders.fitting import NDCG
    from workflows.distributed.training import fit
    from workflows.stages.generate.loop import curve_of, loop

    steps = {name: getattr(config, name).course.steps for name in names}
    told: set[str] = set()

    def tell(report: dict[str, Any]) -> None:
        if "best" in report and report["name"] not in told:
            told.add(report["name"])
            context.log(
                f"generate: {report['name']} is best at step {report['best']['step']} of {report['step']}, "
                f"validation NDCG@10 {report['best'][NDCG]:.4f}, {report['seconds']:.0f} s"
            )

    def progress(report: dict[str, Any]) -> None:
        tell(report)
        context.progress(int(report["step"]), steps[report["name"]])

    outcome = fit(
        loop,
        {
            "root": context.run.root,
            "seed": context.seed,
            "names": names,
            "settings": config.model_dump(mode="json"),
            "split": context.split.model_dump(mode="json"),
        },
        workers=config.workers,
        run=context.run,
        name=f"generate/{context.fingerprint}",
        cpus_per_worker=config.cpus_per_worker,
        use_gpu=config.use_gpu,
        progress=progress,
    )
    for report in outcome.history:  # progress may have missed it
        tell(report)
    return {name: curve_of(outcome.history, name) for name in names}
