"""The arms of the task ablation: what each learns from, and their fits one by one on every worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from pydantic import TypeAdapter

from models.common.recommender import recommended
from models.evaluation.lists import CUT, ranks
from models.generation.heldout import HeldOut, task_scores
from models.recommenders import fitting
from models.recommenders.language_model import LanguageModelRecommender
from models.recommenders.settings import LanguageModelSettings
from operators.log.split import Split
from storage import files
from storage.run import RunDir
from workflows.distributed import training
from workflows.stages.ablate_tasks.stage import Config
from workflows.stages.generate.build import training_task
from workflows.stages.generate.data import Data, read_data

OWN, ORIGINAL = "own", "original"  # semantic IDs of the run; those of text alone


class Arm(NamedTuple):
    """A language model that learns the first so many tasks on some semantic IDs."""

    sids: str
    tasks: int

    @property
    def name(self) -> str:
        """What files and metrics call it."""
        return f"{self.sids}-{self.tasks}"


def text_tasks(settings: LanguageModelSettings) -> int:
    """The number of tasks before the first one that reads captions."""
    reads = ["caption" in task.inputs for task in settings.trained_tasks]
    return reads.index(True) if True in reads else len(reads)


def make_arms(settings: LanguageModelSettings) -> tuple[Arm, ...]:
    """One task on the run's semantic IDs, two, … all; and on the original ones those that read no captions."""
    return (*(Arm(OWN, count + 1) for count in range(len(settings.tasks))), Arm(ORIGINAL, text_tasks(settings)))


def arm_settings(config: Config, arm: Arm) -> LanguageModelSettings:
    """The language model of an arm, and its fit."""
    settings, fit = config.sequential, config.sequential.fit
    if config.budget == "main":
        fit = fit.model_copy(update={"batch_size": fit.batch_size * arm.tasks})
    return settings.model_copy(update={"tasks": settings.tasks[: arm.tasks], "fit": fit})


def read_queries(config: Config, run: RunDir, split: Split, *, seed: int) -> Data:
    """What all arms learn from and are asked."""
    settings = config.sequential
    data = read_data(run, split, history=settings.history, repeats=not config.filter_seen)
    return data._replace(
        valid=fitting.sample(data.valid, settings.fit.valid_queries, seed=seed),
        test=fitting.sample(data.test, config.queries, seed=seed),
    )


def loop(task: dict[str, Any]) -> None:
    """`fit_arms` in the form that Ray Train calls."""
    rank, workers = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()  # what workers share are the arms, not a model
    fit_arms(task, training.report, rank=rank, workers=workers)


def fit_arms(
    task: dict[str, Any], report: Callable[[dict[str, Any]], None], *, rank: int = 0, workers: int = 1
) -> None:
    """Fit this worker's share of the arms, and write their scores.

    What a killed attempt has scored is not fitted again.
    """
    run, config = RunDir(task["root"]), Config.model_validate(task["settings"])
    split: Split = TypeAdapter(Split).validate_python(task["split"])
    data = read_queries(config, run, split, seed=task["seed"])
    arms, jobs = {arm.name: arm for arm in make_arms(config.sequential)}, task["jobs"]
    for start in range(0, len(jobs), workers):
        if start + rank < len(jobs):
            name, seed = jobs[start + rank]
            uri = scores_uri(task["folder"], name, seed)
            if not files.exists(uri):
                where = run if arms[name].sids == OWN else original_of(task["folder"])
                files.write_json(uri, score(config, arms[name], where, data, seed=seed))
        report({"done": min(start + workers, len(jobs))})


def score(config: Config, arm: Arm, run: RunDir, data: Data, *, seed: int) -> dict[str, Any]:
    """Fit one arm from one seed, and ask its best state.

    Args:
        run: whose semantic IDs and texts it learns.

    Returns:
        The validation that was kept; `rank`, the place of each test query's item in its list, 0 where it is not among
        the first ten; `tasks`, see `models.generation.heldout.task_scores`.
    """
    settings = arm_settings(config, arm)
    subject = training_task(settings, run, data, seed=seed)
    subject = subject._replace(losses=lambda learner: {})  # tasks are asked once, at the end
    curve: list[dict[str, Any]] = []
    best: dict[str, torch.Tensor] = {}

    def improved(learner: Any, tensors: fitting.State) -> None:
        best.update({name: tensor.clone() for name, tensor in tensors.items()})

    keep = fitting.Callbacks(lambda metrics, state: curve.append(metrics), improved)
    fitting.fit(settings.fit, subject, data.valid, keep, seed=seed, filter_seen=config.filter_seen)
    subject.learner.load_state_dict(best)
    recommender = subject.recommender(subject.learner.eval())
    assert isinstance(recommender, LanguageModelRecommender)  # noqa: S101 - for the type checker
    test = data.test
    lists = recommended(recommender, test.histories, k=CUT, banned=test.seen if config.filter_seen else None)
    corpus = recommender.corpus
    held_out = HeldOut(corpus.held_out.nonzero()[:, 0], test.histories, test.target)
    return {
        **fitting.best_of(curve),
        "seconds": curve[-1]["seconds"],
        "rank": ranks(lists, test.target.numpy()).tolist(),
        "tasks": task_scores(
            recommender.model,
            recommender.trie,
            corpus,
            settings.trained_tasks,
            held_out,
            most=config.examples,
            seed=seed,
        ),
    }


def original_of(folder: str) -> RunDir:
    """Where the original semantic IDs are, beside the scores."""
    return RunDir(files.join(folder, "original"))


def scores_uri(folder: str, name: str, seed: int) -> str:
    """Where the scores of an arm are."""
    return files.join(folder, f"{name}-{seed}.json")
