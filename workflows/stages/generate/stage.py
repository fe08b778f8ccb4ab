"""Generate: fit the recommenders of next items on Ray Train, and choose the generator among them.

Writes models/generator/{sasrec,item_knn,product_codes,rpg,language_model,language_model+…,ensemble},
models/generator/items (which item every row is), models/generator/codes/{product_codes,rpg} (the codes that items are
quantised into) and metrics/generate.json.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from models.recommenders.settings import check_backbone, check_codewords, check_texts
from workflows.catalogs.survey import Survey
from workflows.distributed.pools import Workers
from workflows.engine.previous import going_on
from workflows.engine.stage import Context, Result, Stage
from workflows.engine.text import decimal
from workflows.stages.generate.settings import GENERATORS, Config

if TYPE_CHECKING:
    from workflows.stages.generate.data import Data


class GenerateStage(Stage[Config]):
    """Fits the generators of next items, and the baseline that they have to beat, on Ray Train."""

    config_type = Config
    version = 9
    reads = ("ingest", "interpret", "project", "quantize")

    def check(self, config: Config, root: str) -> None:
        """Finds a backbone that is not there."""
        if config.language_model is not None:
            check_backbone(config.language_model)

    def check_data(self, config: Config, catalog: Survey) -> list[str]:
        """Finds tasks of the language model whose texts no item has, and more codewords than items."""
        for settings in config.coded:
            check_codewords(settings, catalog.items)
        tasks = config.language_model.tasks if config.language_model else ()
        return check_texts(tasks, catalog.lacking, "stages.generate.language_model.tasks")

    def workers(self, config: Config) -> Workers | None:
        """Returns the workers of the fits, which run one after the other."""
        return config.processes

    def run(self, config: Config, context: Context) -> Result:
        """Fits one model after the other; those that a killed attempt has finished are not fitted again."""
        from models.recommenders.fitting import NDCG, best_of, require_queries, validate
        from models.recommenders.rescoring import write_rescored
        from operators.log.partitions import open_log
        from workflows.stages.generate.build import (
            learnable,
            load_recommender,
            write_codes,
            write_cold_bonus,
            write_ensemble,
            write_item_knn,
        )
        from workflows.stages.generate.data import SMALL, save_items, write_data
        from workflows.stages.generate.earlier import artifact_uri, earlier_of

        run = context.run
        asked = max(config.compared, *(getattr(config, name).fit.valid_queries for name in config.names))
        shown: Any = {"history": config.history, "repeats": not config.filter_seen}
        cuts = open_log(run).cuts(context.split)
        config = config.model_copy(update={"previous": going_on(config.previous, "generate", cuts, context.log)})
        data, positives = write_data(context, "generate", **shown, most={"valid": asked})
        require_queries(data.valid, "validation")
        if config.language_model is not None:
            tasks = learnable(config.language_model, context, data)
            config = config.model_copy(update={"language_model": tasks})
        save_items(run, data.item_ids)
        earlier = earlier_of(config.previous, data.item_ids)
        for settings in config.coded:
            write_codes(run, settings, data.item_ids, context.split, seed=context.seed, earlier=earlier)
        compared = data.valid.first(config.compared)
        names = config.names
        if config.item_knn is not None:
            names = ["item_knn", *names]
            fit = partial(write_item_knn, config.item_knn, run, data, compared, filter_seen=config.filter_seen)
            small = positives < SMALL
            context.pieces(fit, ["item_knn"], name=f"generate/{context.fingerprint}/counted", here=small)
        history = _fit(config, context, data)
        bonuses = {}
        for name in config.calibrated:
            bonus, cold = write_cold_bonus(run, data, compared, name, filter_seen=config.filter_seen)
            bonuses[name] = {"cold_bonus": bonus}
            asked_for = (
                f"{cold} of {len(compared.target)} validation queries ask" if cold else "no validation query asks"
            )
            context.log(f"generate: the cold bonus of {name} is {bonus:g}; {asked_for} for an item without an event")
        if config.rescore is not None:
            names = [*names, config.rescored]
            write_rescored(*(artifact_uri(run, name) for name in (config.rescored, "language_model", config.rescore)))
        weights = {}
        if config.ensemble is not None:
            names = [*names, "ensemble"]
            weights = write_ensemble(config.ensemble, run, compared, filter_seen=config.filter_seen)
            shares = ", ".join(f"{name} {decimal(weight, 2)}" for name, weight in weights.items())
            context.log(f"generate: the weights of the ensemble are {shares}")
        valid = {
            name: validate(load_recommender(run, name), compared, filter_seen=config.filter_seen) for name in names
        }
        chosen = max(
            (name for name in (*GENERATORS, config.rescored) if name in valid), key=lambda name: valid[name][NDCG]
        )
        choice = {"chosen": chosen, "queries": shown, "ensemble": weights}
        run.write_json({**choice, "valid": valid, "history": history}, "metrics", "generate.json")
        best = {
            name: {
                "step": best_of([point for point in curve if "averaged" not in point])["step"],
                "seconds": curve[-1]["seconds"],
                **_averaged(curve),
                **bonuses.get(name, {}),
            }
            for name, curve in history.items()
        }
        learned = {"learned_until": cuts[0] if cuts else None}
        told = {**best, "ensemble": {"weights": weights}}
        metrics = {name: {**scores, **told.get(name, {})} for name, scores in valid.items()}
        return Result(rows_in=positives, rows_out=positives, metrics={"chosen": chosen, **learned, **metrics})


def _averaged(curve: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns what the average of a fit's best states is worth on validation, beside the best of them; or nothing."""
    from models.recommenders.fitting import NDCG, best_of

    if "averaged" not in curve[-1]:
        return {}
    average, best = curve[-1][NDCG], best_of(curve[:-1])[NDCG]
    return {"averaged": {"steps": curve[-1]["averaged"], NDCG: average, "best_state": best, "kept": average > best}}


def _fit(config: Config, context: Context, data: Data) -> dict[str, list[dict[str, Any]]]:
    """Returns the validations of every fit, in order; one start of Ray Train does for all of them."""
    from models.recommenders.fitting import NDCG
    from workflows.distributed.training import fit
    from workflows.stages.generate.loop import curve_of, loop

    fits = {name: getattr(config, name).fit for name in config.names}
    if config.previous is not None:
        fits = {name: fit.warmed(config.warm) for name, fit in fits.items()}
    steps = {name: fit.last_step for name, fit in fits.items()}
    logged: set[str] = set()

    def log_best(report: dict[str, Any]) -> None:
        if "best" in report and report["name"] not in logged:
            logged.add(report["name"])
            best, steps = report["best"], ", ".join(map(str, report["best"].get("averaged", ())))
            where = f"as the average of steps {steps}" if steps else f"at step {best['step']}"
            context.log(
                f"generate: {report['name']} is best {where} of {report['step']}, "
                f"validation NDCG@10 {decimal(best[NDCG])}, {report['seconds']:.0f} s"
            )

    def progress(report: dict[str, Any]) -> None:
        log_best(report)
        context.progress(int(report["step"]), steps[report["name"]])

    history = fit(
        loop,
        {
            "root": context.run.root,
            "seed": context.seed,
            "names": config.names,
            "settings": config.model_dump(mode="json"),
            "data": data,
        },
        workers=config.processes,
        run=context.run,
        name=f"generate/{context.fingerprint}",
        progress=progress,
    )
    for report in history:  # progress may have missed it
        log_best(report)
    return {name: curve_of(history, name) for name in config.names}
