"""What every worker of generate does on Ray Train: fit one recommender after the other."""

from __future__ import annotations

import gc
from functools import partial
from typing import Any

from models.recommenders import fitting
from storage.run import RunDir
from workflows.distributed import training
from workflows.stages.generate.build import training_task
from workflows.stages.generate.data import Data
from workflows.stages.generate.earlier import artifact_uri, earlier_of
from workflows.stages.generate.settings import Config


def loop(task: dict[str, Any]) -> None:
    """Fits one recommender after the other, but for those that a killed attempt has finished."""
    config, run = Config.model_validate(task["settings"]), RunDir(task["root"])
    data = task["data"]
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
    """Returns the validations of one fit, in order, and the held-out losses of its tasks before the first step."""
    points = [report for report in reports if fitting.NDCG in report or "losses" in report]
    return [{key: point[key] for key in point if key != "name"} for point in points if point["name"] == name]


def _fit(name: str, config: Config, run: RunDir, data: Data, *, seed: int, state: fitting.State | None) -> None:
    """Fits a recommender; the first worker writes its artifact after every validation that is the best so far."""
    settings, uri = getattr(config, name), artifact_uri(run, name)
    task = training_task(settings, run, data, seed=seed, earlier=earlier_of(config.previous, data.item_ids))
    fit = settings.fit.warmed(config.warm) if task.warm else settings.fit

    def improved(learner: Any, tensors: fitting.State) -> None:
        if tensors:
            task.recommender(learner).save(uri, tensors)

    def report(metrics: dict[str, Any], take: Any) -> None:
        training.report({"name": name, **metrics}, partial(training.save_tensors, take), every_s=config.checkpoint_s)

    fitting.fit(
        fit,
        task,
        data.valid.first(fit.valid_queries),
        fitting.Callbacks(report, improved),
        seed=seed,
        strategy=config.strategy,
        device=training.device(),
        filter_seen=config.filter_seen,
        state=state,
    )
