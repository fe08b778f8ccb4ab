"""Rank: fit what finds candidates, then the TorchRec ranker on Ray Train; write models/retriever and models/ranker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from models.ranking.config import TableDtype
from models.ranking.settings import RankerSettings
from workflows.distributed.pools import Workers
from workflows.engine.stage import Context, Result, Stage, StageConfig

if TYPE_CHECKING:
    from models.ranking.fitting import Data
    from models.ranking.training import Trainer
    from storage.run import RunDir


COMPARED = 5_000  # validation queries that choose the weight of popularity among the candidates, at most


class Config(RankerSettings, StageConfig):
    """Settings of the rank stage."""

    resources: ClassVar[frozenset[str]] = frozenset({"use_gpu", "checkpoint_s"})

    export: TableDtype = Field("fp16", description="how models/ranker keeps the tables, for serving")
    workers: int = Field(1, ge=1)
    use_gpu: bool = False
    checkpoint_s: float = Field(60.0, ge=0, description="seconds between states that a killed fit goes on from")

    @model_validator(mode="after")
    def _rows_for_every_worker(self) -> Config:
        if self.batch_size < self.workers:
            raise ValueError(f"batch_size is shared by {self.workers} workers: set it to {self.workers} or more")
        return self


class RankStage(Stage[Config]):
    """Rank: fit the TorchRec ranker on Ray Train and write models/ranker."""

    config_type = Config
    version = 3
    reads = ("project", "features")

    def workers(self, config: Config) -> Workers | None:
        """Returns the workers of the fit, one CPU each."""
        return Workers(config.workers, gpu=config.use_gpu)

    def run(self, config: Config, context: Context) -> Result:
        """Fits the ranker of a run whose features are written."""
        from workflows.distributed.training import fit

        weight = fit_retriever(context)
        history = fit(
            train_loop,
            {"root": context.run.root, "seed": context.seed, "settings": config.model_dump(mode="json")},
            workers=Workers(config.workers, gpu=config.use_gpu),
            run=context.run,
            name=f"rank/{context.fingerprint}",
            progress=lambda metrics: context.progress(int(metrics["epoch"]), config.epochs),
        )
        epochs = [metrics for metrics in history if "valid_log_loss" in metrics]
        context.run.write_json(epochs, "metrics", "rank.json")
        best = min(epochs, key=lambda epoch: epoch["valid_log_loss"])
        rows = epochs[-1]["rows"]
        return Result(rows_in=rows, rows_out=rows, metrics={**best, "epochs": len(epochs), "popularity_weight": weight})


def fit_retriever(context: Context) -> float:
    """Chooses on validation how much popularity counts among the ranker's candidates; writes models/retriever."""
    import numpy as np
    import torch

    from models.recommenders.content import fit_popularity_weight
    from models.recommenders.fitting import sample
    from operators.features.ranker_inputs import aligned
    from operators.log.encoding import read_log
    from operators.log.sequences import queries

    run, log = context.run, read_log(context.run)
    numbers = context.split.numbers(log.events)
    valid = queries(
        log.events, numbers, "valid", history=run.read_json("features", "spec.json")["history"], repeats=False
    )
    valid = sample(valid, COMPARED, seed=context.seed)
    chosen = log.events.item[(numbers == 0) & (log.events.label > 0)]
    popularity = torch.from_numpy(np.bincount(chosen, minlength=len(log.items)))
    vectors = aligned(log.items, run.read_table("embeddings"))
    weight = fit_popularity_weight(vectors, popularity, valid.histories, valid.target, banned=valid.seen)
    run.write_json({"popularity_weight": weight}, "models", "retriever", "config.json")
    return weight


def train_loop(task: dict[str, Any]) -> None:
    """The loop of one worker; the first one writes the artifact after every epoch that is the best so far."""
    from models.ranking import fitting
    from models.ranking.ranker import save_ranker
    from models.ranking.training import Trainer
    from storage.run import RunDir
    from workflows.distributed import training

    settings, run = Config.model_validate(task["settings"]), RunDir(task["root"])
    data = read_data(run, settings)
    trainer = Trainer(fitting.make_ranker(data), device=training.device(), seed=task["seed"], **settings.optimisation())

    def improved(trainer: Trainer) -> None:
        state = trainer.gather()
        if state is not None:
            save_ranker(run.uri("models", "ranker"), data.config, state, table_dtype=settings.export)

    keep = fitting.Keep(
        report=lambda metrics, save: training.report(metrics, lambda to: save(str(to)), every_s=settings.checkpoint_s),
        improved=improved,
    )
    position = training.restored(lambda folder: trainer.load(str(folder)))
    fitting.fit(settings, trainer, data, keep, seed=task["seed"], position=position)


def read_data(run: RunDir, settings: RankerSettings) -> Data:
    """Returns the items and examples of a run as the ranker of these settings reads them."""
    from models.ranking.fitting import Data
    from operators.features.ranker_inputs import Examples, ItemFeatures

    spec, embeddings = run.read_json("features", "spec.json"), run.read_table("embeddings")
    config = settings.ranker(spec, embeddings.schema.field("embedding").type.list_size)
    items = ItemFeatures(run.read_table("features", "items"), embeddings, config)
    train, valid = (Examples(run.read_table("features", name), config.dense) for name in ("train", "valid"))
    return Data(config, items, train, valid)
