"""What every worker of generate does on Ray Train: fit one model after the other."""

from __future__ import annotations

import gc
from functools import partial
from typing import Any

from pydantic import TypeAdapter

from models.recommenders import fitting
from models.recommenders.artifacts import save_next_item
from operators.log.split import Split
from storage.run import RunDir
from workflows.distributed import training
from workflows.stages.generate import recommenders
from workflows.stages.generate.stage import Config


def loop(task: dict[str, Any]) -> None:
    """The loop of one worker: one model after the other, but for those that a killed attempt has finished."""
    config, run = Config.model_validate(task["settings"]), RunDir(task["root"])
    split: Split = TypeAdapter(Split).validate_python(task["split"])
    data = recommenders.read_data(run, split, history=config.history, repeats=not config.filter_seen)
    state = training.restored(training.load_tensors)  # of the model that comes next; empty where it has not begun
    finished = {report["name"] for report in training.reported() if "best" in report}
    for name in task["names"]:
        if name in finished:
            continue
        _fit(name, config, run, data, seed=task["seed"], state=state or None)
        state = None
        gc.collect()  # a model in shards is part of cycles
        curve = curve_of(training.reported(), name)
        last = {"step": curve[-1]["step"], "seconds": curve[-1]["seconds"]}
        nothing = partial(training.save_tensors, dict)
        training.report({"name": name, **last, "best": fitting.best_of(curve)}, nothing, every_s=0.0)


def curve_of(reports: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The validations of one model's fit, in order, and what its tasks lost before the first step."""
    points = [report for report in reports if fitting.NDCG in report or "losses" in report]
    return [{key: point[key] for key in point if key != "name"} for point in points if point["name"] == name]


def _fit(
    name: str, config: Config, run: RunDir, data: recommenders.Data, *, seed: int, state: fitting.State | None
) -> None:
    """Fit a model; the first worker writes its artifact after every validation that is the best so far."""
    settings, uri = getattr(config, name), run.uri("models", "generator", name)
    sequential = name == recommenders.SEQUENTIAL
    make = recommenders.sequential_subject if sequential else recommenders.next_item_subject
    subject = make(settings, run, data, seed=seed)

    def improved(learner: Any, tensors: fitting.State) -> None:
        if not tensors:
            return
        if sequential:
            recommenders.save_sequential(run, uri, settings, learner, tensors, data.item_ids)
        else:
            save_next_item(uri, learner, tensors)

    def report(metrics: dict[str, Any], take: Any) -> None:
        def save(folder: Any) -> None:
            tensors = take()
            training.save_tensors(lambda: tensors, folder)

        training.report({"name": name, **metrics}, save, every_s=config.checkpoint_s)

    fitting.fit(
        settings.course,
        subject,
        fitting.sample(data.valid, settings.course.valid_queries, seed=seed),
        fitting.Keep(report, improved),
        seed=seed,
        strategy=config.strategy,
        device=training.device(),
        filter_seen=config.filter_seen,
        state=state,
    )
