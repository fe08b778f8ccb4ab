"""Settings of quantize: the quantizer, its fit, and what makes SIDs unique."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from models.common.settings import FitConfig, Settings
from models.semantic_ids.quantizer import RQKMEANS, RQVAE, Architecture, suited_sizes
from models.semantic_ids.rqvae import Schedule
from workflows.engine.stage import ContinuingConfig, WorkersConfig

COLLABORATIVE = "rqvae+collaborative"
# codebook sizes of arXiv 2605.05249; none, which stands for those that suit the catalogue
PRESETS: dict[str, tuple[int, ...]] = {"trialigngr": (4096, 2048, 1024), "auto": ()}


def _preset(value: object) -> object:
    if isinstance(value, str):
        if value not in PRESETS:
            raise ValueError(f"{value!r} is no preset: write a list of numbers, or {', '.join(PRESETS)}")
        return PRESETS[value]
    return value


class Collaborative(Settings):
    """The pull of `rqvae+collaborative` towards what users chose in the training part of the log.

    Attributes:
        weight: of the alignment in the loss.
        source: of the item vectors: `svd` factors who chose what, `sasrec` fits a SASRec on the training sequences.
        width: of the item vectors.
        fit: of SASRec.
    """

    weight: PositiveFloat = 1.0
    source: Literal["svd", "sasrec"] = "svd"
    width: PositiveInt = 64
    fit: FitConfig = FitConfig()

    @model_validator(mode="after")
    def _two_heads_share_the_width(self) -> Collaborative:
        if self.source == "sasrec" and self.width % 2:
            raise ValueError(f"SASRec has two heads, which share the width: write width: {self.width + 1}")
        return self


class Config(WorkersConfig, ContinuingConfig):
    """Settings of quantize.

    An earlier run gives over its quantizer and its SIDs: its items keep theirs, new ones get theirs beside them, with
    suffixes also where `collisions` is `sinkhorn`. Settings of the fit then mean nothing.

    Attributes:
        method: `rqvae`, `rqkmeans`, or `rqvae+collaborative`.
        codebook_sizes: codewords per level, at most 25 levels; `auto` (or an empty list) for what suits the number of
            items, see `suited_sizes`; or `trialigngr` for that paper's. Codebooks far larger than the catalogue leave
            codes unused.
        whiten: give all directions of the embeddings about the same variance before they are quantized, so that the
            strongest ones do not own the first codes.
        latent_dim, hidden_dims: of rqvae: width of the codewords (null: that of the embeddings) and of the layers
            before them.
        commitment: of rqvae: weight of the pull of latents towards their codewords (β).
        steps, batch_size, learning_rate, reset_until, mixup: of rqvae, see `models.semantic_ids.rqvae.Schedule`.
        balanced: of rqkmeans: give all codewords of a level about equally many items.
        collaborative: of rqvae+collaborative.
        collisions: what makes SIDs unique. `suffix` gives one to items that share their codes, `always_suffix` to all;
            `sinkhorn` re-assigns the last code of items that share all, and gives suffixes to what is left.
        max_suffixes: upper bound of a suffix, exclusive.
        fit_rows: rows that the fit holds in memory; of a larger catalogue a sample.
    """

    resources: ClassVar[frozenset[str]] = WorkersConfig.resources | {"workers"}

    method: Literal["rqvae", "rqkmeans", "rqvae+collaborative"] = "rqvae"
    codebook_sizes: Annotated[tuple[PositiveInt, ...], BeforeValidator(_preset)] = Field((256, 256, 256), max_length=25)
    whiten: bool = False
    latent_dim: PositiveInt | None = None
    hidden_dims: tuple[PositiveInt, ...] = (128,)
    commitment: PositiveFloat = Schedule.commitment
    steps: PositiveInt = Schedule.steps
    batch_size: PositiveInt = Schedule.batch_size
    learning_rate: PositiveFloat = Schedule.learning_rate
    reset_until: float = Field(Schedule.reset_until, ge=0, le=1)
    mixup: bool = Schedule.mixup
    balanced: bool = False
    collaborative: Collaborative = Collaborative()
    collisions: Literal["suffix", "always_suffix", "sinkhorn"] = "suffix"
    max_suffixes: PositiveInt = 256
    fit_rows: PositiveInt = 1_000_000
    checkpoint_s: float = Field(30.0, ge=0)

    @model_validator(mode="after")
    def _fits_the_method(self) -> Config:
        if self.balanced and self.method != RQKMEANS:
            raise ValueError("balanced is for method rqkmeans: leave it out")
        return self

    def reads_split(self) -> bool:
        """Only a fit that goes by the log does."""
        return self.method == COLLABORATIVE and self.previous is None

    def sizes(self, items: int) -> tuple[int, ...]:
        """Returns the codewords per level for so many items."""
        return self.codebook_sizes or suited_sizes(items)

    def architecture(self, width: int, items: int) -> Architecture:
        """Returns the shape of the quantizer of so many vectors of this width."""
        if self.method == RQKMEANS:
            return Architecture(RQKMEANS, width, self.sizes(items), width, whiten=self.whiten)
        widths = (self.latent_dim or width, self.hidden_dims)
        return Architecture(RQVAE, width, self.sizes(items), *widths, whiten=self.whiten)

    def schedule(self) -> Schedule:
        """Returns the course of a fit of rqvae, with or without the pull of the log."""
        alignment = self.collaborative.weight if self.method == COLLABORATIVE else 0.0
        return Schedule(**self.model_dump(include=set(Schedule.__dataclass_fields__)), alignment=alignment)
