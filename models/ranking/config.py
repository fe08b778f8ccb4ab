"""What a ranker is made of, in words: definitions read this without loading torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

HISTORY = "history_"  # a table's feature `caption` has `history_caption` beside it: the same of the user's last items

USER, ITEM = "user", "item"  # the tables of ids

Precision = Literal["fp32", "bf16"]
Sharding = Literal["table_wise", "column_wise", "row_wise"]


class RankerConfig(BaseModel):
    """What rebuilds the module.

    Attributes:
        tables: by name; the features of each are those of the item (`caption`), the user (`user`), or the same of the
            user's last items (`history_caption`).
        dense: names of the dense features, in order.
        content_dim: width of item embeddings; 0 where the ranker does not read them.
        history: items of the history that target attention weighs one by one; 0 pools the history as one bag.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tables: dict[str, Table]
    dense: tuple[str, ...] = ()
    content_dim: int = 0
    history: int = 0
    embedding_dim: int = 16
    architecture: Architecture = Dcnv2()
    dropout: float = 0.0

    @property
    def past(self) -> tuple[str, ...]:
        """Tables that look into the user's history, too."""
        names = {feature for table in self.tables.values() for feature in table.features}
        return tuple(name for name in self.tables if HISTORY + name in names)

    @model_validator(mode="after")
    def _something_to_attend_to(self) -> RankerConfig:
        if self.history and not self.past:
            raise ValueError("target attention needs a table with a history feature")
        return self
