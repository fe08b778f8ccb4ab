"""Rank: fit what finds candidates, then the TorchRec ranker on Ray Train; write models/retriever and models/ranker."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from models.ranking.config import TableDtype
from models.ranking.settings import RankerSettings
from workflows.distributed.pools import Workers
from workflows.engine.previous import going_on, has_finished, learned_until
from workflows.engine.stage import Context, ContinuingConfig, Result, Stage, WorkersConfig

if TYPE_CHECKING:
    from models.ranking.fitting import Data
    from models.ranking.training import Trainer
    from operators.log.split import Split
    from storage.run import RunDir


COMPARED = 5_000  # validation queries that choose the weight of popularity among the candidates, at most


class Config(RankerSettings, WorkersConfig, ContinuingConfig):
    """Settings of the rank stage; the ranker goes on from that of an earlier run where it is of the same shape."""

    export: TableDtype = Field("fp16", description="how models/ranker keeps the tables, for serving")

    @model_validator(mode="after")
    def _rows_for_every_worker(self) -> Config:
        if self.batch_size < self.workers:
            raise ValueError(f"batch_size is shared by {self.workers} workers: set it to {self.workers} or more")
        return self


class RankStage(Stage[Config]):
    """Rank: fit the TorchRec ranker on Ray Train and write models/ranker."""

    config_type = Config
    version = 7
    reads = ("project", "quantize", "features")

    def workers(self, config: Config) -> Workers | None:
        """Returns the workers of the fit."""
        return config.processes

    def run(self, config: Config, context: Context) -> Result:
        """Fits the ranker of a run whose features are written."""
        from operators.log.partitions import open_log
        from workflows.distributed.training import fit

        cuts = open_log(context.run).cuts(context.split)
        config = config.model_copy(update={"previous": going_on(config.previous, "rank", cuts, context.log)})
        since = learned_until(config.previous, "rank")
        weight = fit_retriever(context, steps=config.epochs)
        history = fit(
            train_loop,
            {
                "root": context.run.root,
                "seed": context.seed,
                "settings": config.model_dump(mode="json"),
                "since": since,
            },
            workers=config.processes,
            run=context.run,
            name=f"rank/{context.fingerprint}",
            progress=lambda metrics: context.progress(int(metrics["epoch"]), config.epochs),
        )
        epochs = [metrics for metrics in history if "valid_log_loss" in metrics]
        context.run.write_json(epochs, "metrics", "rank.json")
        best = min(epochs, key=lambda epoch: epoch["valid_log_loss"])
        rows = epochs[-1]["rows"]
        metrics = {**best, "epochs": len(epochs), "popularity_weight": weight}
        if best["epoch"]:  # else the weights of the run before stand
            since = cuts[0] if cuts else None
        return Result(rows_in=rows, rows_out=rows, metrics={**metrics, "learned_until": since})


def fit_retriever(context: Context, *, steps: int) -> float:
    """Chooses on validation how much popularity counts among the ranker's candidates; writes models/retriever.

    It shows its progress as the first of so many steps.
    """
    import numpy as np
    import torch

    from models.recommenders.content import fit_popularity_weight
    from operators.features.ranker_inputs import aligned, read_embeddings
    from operators.log.partitions import item_ids, open_log
    from operators.log.sequences import read_queries
    from storage import files

    run, log = context.run, open_log(context.run)
    name, partitions = f"rank/{context.fingerprint}/retriever", log.about.partitions
    history = run.read_json("features", "spec.json")["history"]
    work = partial(count_positives, run, run.uri("checkpoints", name, "positives"), context.split)
    log.cuts(context.split)  # before pieces that would all compute them
    found = context.pieces(work, range(partitions), name=name, here=partitions == 1, step=(0, steps))
    popularity = np.zeros(len(log.items), np.int64)
    for counted in found:
        counts = files.read_table(counted)
        popularity[counts["item"].to_numpy()] += counts["positives"].to_numpy()
    drawn = {"most": COMPARED, "seed": context.seed}
    asked = read_queries(log, context.split, "valid", history=history, repeats=False, **drawn)
    weight = fit_popularity_weight(
        aligned(item_ids(run), read_embeddings(run)),
        torch.from_numpy(popularity),
        asked.histories,
        asked.target,
        banned=asked.seen,
    )
    run.write_json({"popularity_weight": weight}, "models", "retriever", "config.json")
    return weight


def count_positives(run: RunDir, folder: str, split: Split, number: int) -> str:
    """Counts the training positives of a partition by item: item, positives; returns the URI of the counts."""
    import numpy as np
    import pyarrow as pa

    from operators.log.partitions import open_log
    from operators.log.sequences import split_part
    from storage import files

    part = split_part(open_log(run), split, number)
    chosen = part.events.item[(part.split == 0) & (part.events.label > 0)]
    items, positives = np.unique(chosen, return_counts=True)
    files.write_part(uri := files.part_uri(folder, number), pa.table({"item": items, "positives": positives}))
    return uri


def train_loop(task: dict[str, Any]) -> None:
    """The loop of one worker; the first one writes the artifact after every epoch that is the best so far."""
    from models.ranking import fitting
    from models.ranking.ranker import Ranker, load_weights, save_ranker
    from models.ranking.training import Trainer
    from storage.run import RunDir
    from workflows.distributed import training

    settings, run = Config.model_validate(task["settings"]), RunDir(task["root"])
    data, weights = read_data(run, settings), None
    if settings.previous is not None and has_finished(settings.previous, "rank"):
        weights = load_weights(RunDir(settings.previous).uri("models", "ranker"), data.config)
    device = training.device()
    if weights is None:
        ranker = fitting.make_ranker(data, device)
    else:
        data = read_data(run, settings, since=task["since"])
        news = sum(data.train.rows) >= settings.workers
        settings = settings.warmed() if news else settings.model_copy(update={"epochs": 0})
        ranker = Ranker(data.config)
    trainer = Trainer(ranker, device=device, seed=task["seed"], **settings.optimisation())

    def improved(trainer: Trainer) -> None:
        state = trainer.gather()
        if state is not None:
            save_ranker(run.uri("models", "ranker"), data.config, state, table_dtype=settings.export)

    keep = fitting.Keep(
        report=lambda metrics, save: training.report(metrics, lambda to: save(str(to)), every_s=settings.checkpoint_s),
        improved=improved,
    )
    position = training.restored(lambda folder: trainer.load(str(folder)))
    if weights is not None and position is None:
        trainer.fill(weights)
    fitting.fit(settings, trainer, data, keep, seed=task["seed"], position=position, warm=weights is not None)


def read_data(run: RunDir, settings: RankerSettings, *, since: int | None = None) -> Data:
    """Returns the items and examples of a run as the ranker of these settings reads them.

    Args:
        run: behind features.
        settings: of the ranker.
        since: time of the first examples of training, see `example_parts`.
    """
    from models.ranking.fitting import Data
    from operators.features.ranker_inputs import example_parts, read_embeddings, read_items

    width = read_embeddings(run).schema.field("embedding").type.list_size
    config = settings.ranker(run.read_json("features", "spec.json"), width)
    train = example_parts(run.uri("features", "train"), config.dense, since=since)
    valid = example_parts(run.uri("features", "valid"), config.dense)
    return Data(config, read_items(run, config), train, valid)
