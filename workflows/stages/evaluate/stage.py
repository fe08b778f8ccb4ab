"""Evaluate, on the test split: the ranker, its candidates, the recommenders of next items, and their baselines.

Reads what rank or generate wrote, or both.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, NonNegativeFloat, PositiveInt

from models.evaluation.verdict import Limits
from operators.log.partitions import read_about
from storage.manifest import first_unfinished
from storage.run import RunDir
from workflows.engine.stage import Context, ContinuingConfig, Result, Stage
from workflows.engine.text import decimal
from workflows.stages.evaluate.ranker import score_ranker


class Config(ContinuingConfig):
    """Settings of the evaluate stage; the models of an earlier run are measured beside those of this one."""

    queries: PositiveInt = Field(100_000, description="queries of the test split, a sample, at most")
    pipeline_queries: PositiveInt = Field(2_000, description="of these, what the service's pipeline answers, at most")
    recall_at: tuple[PositiveInt, ...] = Field((10, 50), min_length=1)
    bootstrap: int = Field(200, ge=10, description="resamples of users behind every interval")
    update: Limits = Field(Limits(), description="of the verdict on a run that goes on from an earlier one")
    penalties: tuple[NonNegativeFloat, ...] = Field((), description="on popularity, tried on validation; none: nothing")


class EvaluateStage(Stage[Config]):
    """Measures the ranker, the recommenders and their baselines on the test split."""

    config_type = Config
    version = 14
    reads = ("ingest", "project")
    reads_one_of = ("rank", "generate")
    reads_all = True

    def run(self, config: Config, context: Context) -> Result:
        """Scores the test split and writes metrics/evaluate.json."""
        previous = _compared(config.previous, context)
        there = [stage for stage in self.reads_one_of if first_unfinished(context.run.root, (stage,)) is None]
        metrics: dict[str, Any] = {}
        rows = 0
        if "rank" in there:
            rows, metrics = score_ranker(context, recall_at=config.recall_at, draws=config.bootstrap, previous=previous)
        if "generate" in there:
            from workflows.stages.evaluate.recommenders import score_recommenders, score_tasks

            settings: Any = {"draws": config.bootstrap, "penalties": config.penalties, "previous": previous}
            settings["of_pipeline"] = config.pipeline_queries
            cards = score_recommenders(context, queries=config.queries, **settings)
            rows += cards.get("popularity", {}).get("queries", 0)
            metrics |= {name: {**metrics.get(name, {}), **values} for name, values in cards.items()}
            metrics |= {"tasks": tasks} if (tasks := score_tasks(context, queries=config.queries)) else {}
        if previous is not None:
            from workflows.stages.evaluate.changes import judge_update

            metrics["update"] = judge_update(context, previous, config.update, metrics)
        context.run.write_json(metrics, "metrics", "evaluate.json")
        for key in ("auc", "ndcg@10"):
            named = {name: values for name, values in metrics.items() if key in values and "_over_" not in name}
            if scores := [f"{name} {decimal(values[key])}" for name, values in named.items()]:
                context.log(f"{key.upper()}: {', '.join(scores)}")
        return Result(rows_in=rows, rows_out=rows, metrics=metrics)


def _compared(previous: str | None, context: Context) -> str | None:
    """Returns the run before, if its log has as many partitions: those of one number hold the same users then."""
    about = read_about(context.run)
    if previous is None or about is None:
        return None
    before = read_about(RunDir(previous))
    if before is not None and before.partitions == about.partitions:
        return previous
    context.log(f"{previous} has no log in {about.partitions} partitions: it is not compared")
    return None
