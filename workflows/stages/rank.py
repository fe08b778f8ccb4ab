"""Rank: fit the TorchRec ranker on Ray Train and write models/ranker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from models.ranking.config import (
    HISTORY,
    ITEM,
    USER,
    Architecture,
    Dlrm,
    Precision,
    RankerConfig,
    Sharding,
    Table,
    TableDtype,
)
from operators.items import BAGS
from workflows.stage import Context, Result, StageConfig

if TYPE_CHECKING:
    from models.ranking.training import Trainer
    from storage.run import RunDir
    from workflows.ranker_fit import Data

VERSION = 2
INPUTS = ("project", "features")


class TableConfig(StageConfig):
    """An embedding table."""

    rows: int = Field(1 << 16, ge=2)
    hashes: int = Field(1, ge=1, le=8, description="rows per token: 1 is the hashing trick, more a hash embedding")
    importance: int = Field(0, ge=0, description="rows of a hash embedding's table of importance weights")
    pooling: Literal["sum", "mean", "attention"] = "sum"


class Tables(StageConfig):
    """The tables of a ranker; null leaves one out. All but `user` serve the history, too."""

    user: TableConfig | None = TableConfig()
    item: TableConfig | None = TableConfig()
    caption: TableConfig | None = TableConfig()
    interests: TableConfig | None = TableConfig()
    title: TableConfig | None = None  # its words are in `text`
    text: TableConfig | None = TableConfig()
    sid: TableConfig | None = TableConfig(rows=1 << 15)


class RankerSettings(StageConfig):
    """A ranker and the way it is fitted."""

    resources: ClassVar[frozenset[str]] = frozenset({"sharding"})

    architecture: Architecture = Dlrm()
    tables: Tables = Tables()
    content: bool = Field(True, description="read the embeddings of item and history")
    target_attention: bool = Field(False, description="weigh the history by what it has to do with the item")
    embedding_dim: int = Field(16, ge=4, multiple_of=4)
    dropout: float = Field(0.1, ge=0, lt=1)
    id_dropout: float = Field(0.3, ge=0, lt=1, description="share of user and item ids given as unknown in training")
    epochs: int = Field(10, ge=1, description="at most; the epoch with the best validation log-loss is kept")
    patience: int = Field(3, ge=1, description="epochs without a better validation log-loss before the end")
    batch_size: int = Field(512, ge=1, description="rows per step, over all workers together")
    embedding_lr: float = Field(0.005, gt=0)
    dense_lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.1, ge=0, description="of the tower's matrices")
    precision: Precision = Field("fp32", description="of everything above the embeddings; bf16 needs AMX or a GPU")
    sharding: Sharding = "table_wise"

    @model_validator(mode="after")
    def _make_a_ranker(self) -> RankerSettings:
        try:
            self.ranker({"dense": [], "history": 1}, content_dim=1)
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
        return self

    def ranker(self, spec: dict[str, Any], content_dim: int) -> RankerConfig:
        """The ranker for features as `spec` (features/spec.json) describes them."""
        tables = {}
        for name in (USER, ITEM, *BAGS):
            table: TableConfig | None = getattr(self.tables, name)
            if table is not None:
                features = (name,) if name == USER else (name, HISTORY + name)
                tables[name] = Table(features=features, **table.model_dump())
        return RankerConfig(
            tables=tables,
            dense=tuple(spec["dense"]),
            content_dim=content_dim if self.content else 0,
            history=spec["history"] if self.target_attention else 0,
            embedding_dim=self.embedding_dim,
            architecture=self.architecture,
            dropout=self.dropout,
        )

    def optimisation(self) -> dict[str, Any]:
        """What a `Trainer` has to know."""
        names = {"embedding_lr", "dense_lr", "weight_decay", "sharding", "precision"}
        return self.model_dump(include=names)


class Config(RankerSettings):
    """Settings of the rank stage."""

    resources: ClassVar[frozenset[str]] = frozenset({"use_gpu", "sharding", "checkpoint_s"})

    export: TableDtype = Field("fp16", description="how models/ranker keeps the tables, for serving")
    workers: int = Field(1, ge=1)
    use_gpu: bool = False
    checkpoint_s: float = Field(60.0, ge=0, description="seconds between states that a killed fit goes on from")


def cpus(config: Config) -> float:
    """CPUs that the fit holds at once."""
    return float(config.workers)


def run(config: Config, context: Context) -> Result:
    """Fit the ranker of a run whose features are written."""
    from workflows.training import fit

    def progress(metrics: dict[str, Any]) -> None:
        context.progress(int(metrics["epoch"]), config.epochs)

    outcome = fit(
        train_loop,
        {"root": context.run.root, "seed": context.seed, "settings": config.model_dump(mode="json")},
        workers=config.workers,
        run=context.run,
        name=f"rank/{context.fingerprint}",
        progress=progress,
        use_gpu=config.use_gpu,
    )
    epochs = [metrics for metrics in outcome.history if "valid_log_loss" in metrics]
    context.run.write_json(epochs, "metrics", "rank.json")
    best = min(epochs, key=lambda epoch: epoch["valid_log_loss"])
    rows = epochs[-1]["rows"]
    return Result(rows_in=rows, rows_out=rows, metrics={**best, "epochs": len(epochs)})


def train_loop(task: dict[str, Any]) -> None:
    """The loop of one worker; the first one writes the artifact after every epoch that is the best so far."""
    import ray.train
    import ray.train.torch

    from models.ranking.ranker import save_ranker
    from models.ranking.training import Trainer
    from storage.run import RunDir
    from workflows import ranker_fit, training

    settings, run = Config.model_validate(task["settings"]), RunDir(task["root"])
    data = read_data(run, settings)
    config = data.items.config
    trainer = Trainer(
        ranker_fit.make_ranker(data), device=ray.train.torch.get_device(), seed=task["seed"], **settings.optimisation()
    )

    def improved(trainer: Trainer) -> None:
        state = trainer.gather()
        if state is not None:
            save_ranker(run.uri("models", "ranker"), config, state, table_dtype=settings.export)

    keep = ranker_fit.Keep(
        report=lambda metrics, save: training.report(metrics, lambda to: save(str(to)), every_s=settings.checkpoint_s),
        improved=improved,
    )
    position = training.restored(lambda folder: trainer.load(str(folder)))
    ranker_fit.fit(settings, trainer, data, keep, seed=task["seed"], position=position)


def read_data(run: RunDir, settings: RankerSettings) -> Data:
    """The items and examples of a run as the ranker of these settings reads them."""
    from operators.features import Examples, ItemFeatures
    from workflows.ranker_fit import Data

    spec, embeddings = run.read_json("features", "spec.json"), run.read_table("embeddings")
    config = settings.ranker(spec, embeddings.schema.field("embedding").type.list_size)
    items = ItemFeatures(run.read_table("features", "items"), embeddings, config)
    train, valid = (Examples(run.read_table("features", name), config.dense) for name in ("train", "valid"))
    return Data(items, train, valid)
