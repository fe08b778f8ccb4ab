"""The stage ablate_tasks: how each task of the language model, and semantic IDs with pictures in them, recommend.

Every variant is the same language model, fitted from several seeds: on one task, two, … all, with the run's own
semantic IDs; and with original ones, of text alone, on the tasks that read no captions (TriAlignGR, arXiv 2605.05249,
research questions 3 and 4). All answer the same test queries for the next item, and each is scored on held-out examples
of its tasks.
"""

from __future__ import annotations

from functools import partial

from models.recommenders.settings import check_backbone, check_texts
from storage.errors import UserError
from workflows.catalogs.survey import Survey
from workflows.distributed.pools import Workers
from workflows.engine.stage import Context, Result, Stage
from workflows.stages.ablate_tasks.settings import Config


class AblateTasksStage(Stage[Config]):
    """Fits language models that differ in their tasks and semantic IDs, and compares how they recommend."""

    config_type = Config
    version = 3
    reads = ("ingest", "interpret", "project", "quantize")

    def uses(self, config: Config) -> tuple[str, ...]:
        """Its models are fitted as the language model of generate."""
        return ("generate",)

    def check(self, config: Config, root: str) -> None:
        """Finds a backbone that is not there."""
        check_backbone(config.language_model)

    def check_data(self, config: Config, catalog: Survey) -> list[str]:
        """Finds tasks whose texts no item has; see `check_texts`.

        Raises:
            UserError: the definition names one of them, or none is left to add to the main one.
        """
        tasks = config.language_model.tasks
        lines = check_texts(tasks, catalog.lacking, "stages.ablate_tasks.language_model.tasks")
        if sum(not task.columns & catalog.lacking for task in tasks) < 2:
            raise UserError("No item has a title or a caption, so no task adds to the main one: delete ablate_tasks.")
        return lines

    def workers(self, config: Config) -> Workers | None:
        """Returns the fits that run side by side, one CPU each."""
        return Workers(config.workers)

    def run(self, config: Config, context: Context) -> Result:
        """Fits every variant from every seed, and writes metrics/ablate_tasks.json."""
        from models.recommenders.fitting import require_queries
        from storage import files
        from storage.run import RunDir
        from workflows.distributed.trials import run_trials
        from workflows.stages.ablate_tasks import scores
        from workflows.stages.ablate_tasks.original_sids import write_original
        from workflows.stages.ablate_tasks.variants import ORIGINAL, OWN, make_variants
        from workflows.stages.generate.build import learnable

        run = context.run
        data = scores.prepare(config, context)
        assert data.test is not None  # noqa: S101 - asked for
        for name, queries in (("validation", data.valid), ("test", data.test)):
            require_queries(queries, name)
        tasks = learnable(config.language_model, context, data)
        config = config.model_copy(update={"language_model": tasks})
        folder = run.uri("checkpoints", "ablate_tasks", context.fingerprint, "scores")
        runs = {OWN: run, ORIGINAL: RunDir(files.join(folder, "original"))}
        variants = make_variants(config.language_model)
        if not write_original(context, runs[ORIGINAL]):
            left_out = [name for name, variant in variants.items() if variant.sids == ORIGINAL]
            labels = [variants.pop(name).label for name in left_out]
            context.log(f"left out, since no item has a title or a description: {', '.join(labels)}")
        fitted = run_trials(
            partial(scores.score, config, runs, data),
            list(variants),
            [context.seed + number for number in range(config.seeds)],
            folder=folder,
            at_once=config.workers,
            progress=context.progress,
        )
        metrics = scores.judge(fitted, config, data.test, seed=context.seed)
        run.write_json(metrics, "metrics", "ablate_tasks.json")
        for sentence in metrics["sentences"]:
            context.log(sentence)
        trials = config.seeds * len(variants)
        return Result(rows_in=trials, rows_out=trials, metrics=metrics)
