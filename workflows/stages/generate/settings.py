"""Settings of the generate stage."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, model_validator

from models.common.data_parallel import Strategy
from models.common.settings import WarmStart
from models.recommenders.settings import (
    CodesSettings,
    EnsembleSettings,
    ItemKnnSettings,
    LanguageModelSettings,
    ProductCodesSettings,
    RpgSettings,
    SasRecSettings,
)
from workflows.engine.stage import ContinuingConfig, WorkersConfig

GENERATORS = ("product_codes", "rpg", "language_model")  # of which the best one on validation is chosen
RECOMMENDERS = ("sasrec", *GENERATORS)  # in the order in which they are trained


class Config(WorkersConfig, ContinuingConfig):
    """Settings of the generate stage; those that are trained step by step go on from the weights of an earlier run.

    Attributes:
        product_codes, rpg, language_model: the generators; null leaves one out.
        sasrec, item_knn: the baselines; null leaves one out.
        ensemble: of some of them, told beside them and not chosen, as it may hold a baseline; null leaves it out.
        rescore: the model by which language_model's beams are ranked once more, as one more generator, whose name is
            `language_model+` and that of the model; null: none.
        filter_seen: leave what a user has met out of their lists and out of the queries; evaluate scores lists as they
            are, too. False where users choose the same items again.
        compared: validation queries by which one of the generators is chosen, at most.
        warm: what is left of their fits then.
        strategy: `ddp` keeps a model whole on each worker; `fsdp` shares it out.
    """

    resources: ClassVar[frozenset[str]] = WorkersConfig.resources | {"strategy"}

    product_codes: ProductCodesSettings | None = ProductCodesSettings()
    rpg: RpgSettings | None = None
    language_model: LanguageModelSettings | None = LanguageModelSettings()
    sasrec: SasRecSettings | None = SasRecSettings()
    item_knn: ItemKnnSettings | None = ItemKnnSettings()
    ensemble: EnsembleSettings | None = None
    rescore: Literal["sasrec", "product_codes"] | None = None
    filter_seen: bool = True
    compared: int = Field(5_000, ge=1)
    cpus_per_worker: PositiveFloat = 2
    warm: WarmStart = WarmStart()
    strategy: Strategy = "ddp"

    @model_validator(mode="after")
    def _some_generator(self) -> Config:
        if all(getattr(self, name) is None for name in GENERATORS):
            raise ValueError(f"all generators are left out: keep one of {', '.join(GENERATORS)}")
        if self.rescore and None in (self.language_model, getattr(self, self.rescore)):
            raise ValueError(f"rescore takes language_model and {self.rescore}: keep both, or leave rescore out")
        for name in self.names:
            if getattr(self, name).fit.batch_size < self.workers:
                least = f"set {name}.fit.batch_size to {self.workers} or more"
                raise ValueError(f"a step is shared by {self.workers} workers: {least}")
        for name in self.ensemble.of if self.ensemble else ():
            if name not in self.names:
                raise ValueError(f"the ensemble is of {name}, which is left out: keep {name}, or set ensemble to null")
        return self

    @property
    def names(self) -> list[str]:
        """The recommenders that are trained step by step, in order."""
        return [name for name in RECOMMENDERS if getattr(self, name) is not None]

    @property
    def coded(self) -> list[CodesSettings]:
        """The recommenders whose items are product codes."""
        return [part for part in (self.product_codes, self.rpg) if part is not None]

    @property
    def calibrated(self) -> list[str]:
        """The recommenders for which validation chooses the bonus of items without an event."""
        return [
            part.name for part in (self.product_codes, self.rpg) if part is not None and part.model.cold_bonus == "auto"
        ]

    @property
    def rescored(self) -> str:
        """The name of the language model whose beams are ranked once more."""
        return f"language_model+{self.rescore}"

    @property
    def history(self) -> int:
        """Items of a history that any of them reads."""
        lengths = [part.model.length for part in (self.product_codes, self.rpg, self.sasrec) if part is not None]
        return max([*lengths, *([self.language_model.history] if self.language_model else [])])

    def reads_split(self) -> bool:
        """Tells that they learn from the split's training part."""
        return True
