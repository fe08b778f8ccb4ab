"""What all settings share: how they are validated, how they name a model, and how a model is fitted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _folder_or_name(model: str) -> str:
    """What starts like a path is one, made absolute since workers stand elsewhere; other names are the hub's."""
    return str(Path(model).expanduser().resolve()) if model.startswith(("/", "./", "../", "~")) else model


Precision = Literal["fp32", "bf16"]
ModelName = Annotated[str, Field(min_length=1), AfterValidator(_folder_or_name)]


class Settings(BaseModel):
    """Frozen settings; an unknown key, an infinity and a NaN are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class FitConfig(Settings):
    """How a recommender is fitted.

    The RQ-VAE and the ranker keep settings of their own: the first has no validation and another schedule of its
    learning rate, the second counts epochs and has two learning rates.

    Attributes:
        steps: optimizer steps at most; the state with the best validation NDCG@10 is kept.
        batch_size: users or documents of a step, over all workers together.
        learning_rate: peak of AdamW's, reached after `warmup` steps; half a cosine over `steps` takes it to a tenth.
        warmup: steps of linear warm-up.
        weight_decay: of matrices.
        validate_every: steps between two validations.
        valid_queries: queries of each validation, at most.
        patience: validations without a better NDCG@10 after which the fit ends.
        precision: of activations.
    """

    steps: int = Field(10_000, ge=1)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(100, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    validate_every: int = Field(500, ge=1)
    valid_queries: int = Field(2_000, ge=1)
    patience: int = Field(5, ge=1)
    precision: Precision = "bf16"
