"""What a definition says of a ranker and its fit."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from models.common.settings import Precision, Settings, WarmStart
from models.ranking.config import (
    HISTORY,
    USER,
    Architecture,
    Dlrm,
    EmbeddingOptimizer,
    Pooling,
    RankerConfig,
    Sharding,
    Table,
)


class TableConfig(Settings):
    """An embedding table."""

    rows: int = Field(1 << 16, ge=2)
    hashes: int = Field(1, ge=1, le=8, description="rows per token: 1 is the hashing trick, more a hash embedding")
    importance: int = Field(0, ge=0, description="rows of a hash embedding's table of importance weights")
    pooling: Pooling = "sum"


class Tables(Settings):
    """The tables of a ranker; null leaves one out. All but `user` serve the history, too."""

    user: TableConfig | None = TableConfig()
    item: TableConfig | None = TableConfig()
    caption: TableConfig | None = TableConfig()
    interests: TableConfig | None = TableConfig()
    title: TableConfig | None = None  # its words are in `text`
    text: TableConfig | None = TableConfig()
    sid: TableConfig | None = TableConfig(rows=1 << 15)


class RankerSettings(Settings):
    """A ranker and the way it is fitted."""

    architecture: Architecture = Dlrm()
    tables: Tables = Tables()
    content: bool = Field(True, description="read the embeddings of item and history")
    sid_decoded: bool = Field(False, description="read what the semantic IDs of item and history decode to, a vector")
    target_attention: bool = Field(False, description="weigh the history by what it has to do with the item")
    embedding_dim: int = Field(16, ge=4, multiple_of=4)
    dropout: float = Field(0.1, ge=0, lt=1)
    id_dropout: float = Field(0.3, ge=0, lt=1, description="share of user and item ids given as unknown in training")
    sid_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of semantic IDs that lose their tokens from a random level on in training"
    )
    epochs: int = Field(10, ge=1, description="at most; the epoch with the best validation log-loss is kept")
    patience: int = Field(3, ge=1, description="epochs without a better validation log-loss before the end")
    batch_size: int = Field(512, ge=1, description="rows per step, over all workers together")
    window_rows: int = Field(
        2_000_000, ge=1, description="rows that a worker reads and shuffles together, but one partition at least"
    )
    embedding_lr: float = Field(0.005, gt=0)
    dense_lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.1, ge=0, description="of the tower's matrices")
    precision: Precision = Field(
        "fp32", description="of everything above the embeddings; bf16 only where the hardware computes in it"
    )
    sharding: Sharding = "table_wise"
    warm: WarmStart = Field(WarmStart(), description="what is left of the fit that goes on from an earlier ranker")
    embedding_optimizer: EmbeddingOptimizer = Field("rowwise_adagrad", description="adagrad is the faster on CPUs")

    @model_validator(mode="after")
    def _make_a_ranker(self) -> RankerSettings:
        try:
            self.ranker({"hash": {}, "dense": [], "history": 1}, content_dim=1)
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
        return self

    def ranker(self, spec: dict[str, Any], content_dim: int) -> RankerConfig:
        """Returns the ranker for features as `spec` (features/spec.json) describes them.

        Args:
            content_dim: width of the embeddings, and of what semantic IDs decode to.
        """
        tables = {
            name: Table(features=(name,) if name == USER else (name, HISTORY + name), **table.model_dump())
            for name, table in self.tables
            if table is not None
        }
        return RankerConfig(
            hash=spec["hash"],
            tables=tables,
            dense=tuple(spec["dense"]),
            content_dim=content_dim * (self.content + self.sid_decoded),
            decoded_dim=content_dim * self.sid_decoded,
            history=spec["history"] if self.target_attention else 0,
            long=spec.get("long_history", 0),
            embedding_dim=self.embedding_dim,
            architecture=self.architecture,
            dropout=self.dropout,
        )

    def warmed(self) -> Self:
        """Returns what is left of the fit where it goes on from an earlier ranker."""
        rates = {name: getattr(self, name) * self.warm.learning_rate for name in ("embedding_lr", "dense_lr")}
        return self.model_copy(update={"epochs": max(1, round(self.epochs * self.warm.steps)), **rates})

    def optimisation(self) -> dict[str, Any]:
        """Returns what a `Trainer` has to know."""
        names = {"embedding_lr", "dense_lr", "weight_decay", "sharding", "embedding_optimizer", "precision"}
        return self.model_dump(include=names)
