"""Generate: fit the generators of next items, and the baseline that they have to beat, on Ray Train.

Writes models/generator/{parallel,sequential,sasrec}, models/generator/items (which item every row is),
models/generator/digits (the parallel semantic IDs) and metrics/generate.json.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, TypeAdapter, model_validator

from models.data_parallel import Strategy
from storage import files
from storage.errors import UserError
from storage.run import RunDir
from workflows.generator_settings import ParallelSettings, SasRecSettings, SequentialSettings, check_backbone
from workflows.log import Split
from workflows.stage import Context, Result, StageConfig, forget_other_attempts

VERSION = 1
INPUTS = ("ingest", "interpret", "project", "quantize")
GENERATORS = ("parallel", "sequential")


class Config(StageConfig):
    """Settings of the generate stage.

    Attributes:
        parallel, sequential: the generators; null leaves one out.
        sasrec: the baseline; null leaves it out.
        filter_seen: leave what a user has met out of their lists, and out of what is asked.
        compared: validation questions by which one of the generators is chosen, at most.
        workers, cpus_per_worker, use_gpu: processes of each fit and what each of them gets.
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


def cpus(config: Config) -> float:
    """CPUs that a fit holds at once."""
    return config.workers * config.cpus_per_worker


def gpus(config: Config) -> float:
    """GPUs that a fit holds at once."""
    return float(config.workers) if config.use_gpu else 0.0


def check(config: Config, root: str) -> None:
    """Find a backbone that is not there."""
    if config.sequential is not None:
        check_backbone(config.sequential)


def run(config: Config, context: Context) -> Result:
    """Fit one model after the other; those that a killed attempt has finished are not fitted again."""
    from workflows.generator_fit import NDCG, best_of, require_queries, sample, validate
    from workflows.generators import load_recommender, read_data, require_learnable, save_items, write_digits

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
    history: dict[str, list[dict[str, Any]]] = {}
    for name in ("sasrec", *GENERATORS):
        if getattr(config, name) is not None:
            history[name] = _fit(name, config, context)
    compared = sample(data.valid, config.compared, seed=context.seed)
    valid = {name: validate(load_recommender(run, name), compared, filter_seen=config.filter_seen) for name in history}
    chosen = max((name for name in GENERATORS if name in valid), key=lambda name: valid[name][NDCG])
    found = {"chosen": chosen, "queries": {"history": config.history, "repeats": not config.filter_seen}}
    run.write_json({**found, "valid": valid, "history": history}, "metrics", "generate.json")
    rows = len(data.sequences.values)
    best = {
        name: {**valid[name], "step": best_of(curve)["step"], "seconds": curve[-1]["seconds"]}
        for name, curve in history.items()
    }
    return Result(rows_in=rows, rows_out=rows, metrics={"chosen": chosen, **best})


def _fit(name: str, config: Config, context: Context) -> list[dict[str, Any]]:
    """The validations of one fit, in order."""
    from workflows.generator_fit import NDCG, best_of
    from workflows.training import fit

    folder = f"generate/{context.fingerprint}"
    done = ("checkpoints", *folder.split("/"), f"{name}.json")
    if files.exists(context.run.uri(*done)):
        return context.run.read_json(*done)
    steps = getattr(config, name).course.steps
    outcome = fit(
        train_loop,
        {
            "root": context.run.root,
            "seed": context.seed,
            "name": name,
            "settings": config.model_dump(mode="json"),
            "split": context.split.model_dump(mode="json"),
        },
        workers=config.workers,
        run=context.run,
        name=f"{folder}/{name}",
        cpus_per_worker=config.cpus_per_worker,
        use_gpu=config.use_gpu,
        progress=lambda metrics: context.progress(int(metrics["step"]), steps),
    )
    curve = [metrics for metrics in outcome.history if NDCG in metrics or "losses" in metrics]
    best = best_of(curve)
    context.log(
        f"generate: {name} is best at step {best['step']} of {curve[-1]['step']}, validation NDCG@10 "
        f"{best[NDCG]:.4f}, {curve[-1]['seconds']:.0f} s"
    )
    context.run.write_json(curve, *done)
    return curve


def train_loop(task: dict[str, Any]) -> None:
    """The loop of one worker; the first one writes the artifact after every validation that is the best so far."""
    import ray.train.torch

    from models.nextitem.artifact import save_next_item
    from workflows import generator_fit, generators, training

    config, run, name = Config.model_validate(task["settings"]), RunDir(task["root"]), task["name"]
    split: Split = TypeAdapter(Split).validate_python(task["split"])
    settings, seed = getattr(config, name), task["seed"]
    data = generators.read_data(run, split, history=config.history, repeats=not config.filter_seen)
    uri = run.uri("models", "generator", name)
    sequential = name == generators.SEQUENTIAL
    make = generators.sequential_subject if sequential else generators.next_item_subject
    subject = make(settings, run, data, seed=seed)

    def improved(learner: Any, tensors: generator_fit.State) -> None:
        if not tensors:
            return
        if sequential:
            generators.save_sequential(run, uri, settings, learner, tensors, data.item_ids)
        else:
            save_next_item(uri, learner, tensors)

    def report(metrics: dict[str, Any], state: Any) -> None:
        def save(folder: Any) -> None:
            tensors = state()
            training.save_tensors(lambda: tensors, folder)

        training.report(metrics, save, every_s=config.checkpoint_s)

    generator_fit.fit(
        settings.course,
        subject,
        generator_fit.sample(data.valid, settings.course.valid_queries, seed=seed),
        generator_fit.Keep(report, improved),
        seed=seed,
        strategy=config.strategy,
        device=ray.train.torch.get_device(),
        filter_seen=config.filter_seen,
        state=training.restored(training.load_tensors),
    )
