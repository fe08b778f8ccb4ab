"""What every worker of generate does on Ray Train: fit one model after the other."""

from __future__ import annotations

from typing import Any

import ray.train.torch
from pydantic import TypeAdapter

from models.nextitem.artifact import save_next_item
from models.workers import world
from storage import files
from storage.run import RunDir
from workflows import generator_fit, generators, training
from workflows.log import Split
from workflows.stages.generate import Config


def loop(task: dict[str, Any]) -> None:
    """The loop of one worker: one model after the other, of which the first worker keeps the validations at the end."""
    config, run = Config.model_validate(task["settings"]), RunDir(task["root"])
    split: Split = TypeAdapter(Split).validate_python(task["split"])
    data = generators.read_data(run, split, history=config.history, repeats=not config.filter_seen)
    state = training.restored(training.load_tensors)
    killed = training.reported()[-1]["name"] if state is not None else None
    for name, done in task["done"].items():
        _fit(name, config, run, data, seed=task["seed"], state=state if name == killed else None)
        if world()[0] == 0:
            mine = [metrics for metrics in training.reported() if metrics["name"] == name]
            files.write_json(
                done, [metrics for metrics in mine if generator_fit.NDCG in metrics or "losses" in metrics]
            )


def _fit(
    name: str, config: Config, run: RunDir, data: generators.Data, *, seed: int, state: generator_fit.State | None
) -> None:
    """Fit a model; the first worker writes its artifact after every validation that is the best so far."""
    settings, uri = getattr(config, name), run.uri("models", "generator", name)
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

    def report(metrics: dict[str, Any], take: Any) -> None:
        def save(folder: Any) -> None:
            tensors = take()
            training.save_tensors(lambda: tensors, folder)

        training.report({"name": name, **metrics}, save, every_s=config.checkpoint_s)

    generator_fit.fit(
        settings.course,
        subject,
        generator_fit.sample(data.valid, settings.course.valid_queries, seed=seed),
        generator_fit.Keep(report, improved),
        seed=seed,
        strategy=config.strategy,
        device=ray.train.torch.get_device(),
        filter_seen=config.filter_seen,
        state=state,
    )
