"""What all settings share: how they are validated, and how they name a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _folder_or_name(model: str) -> str:
    """What starts like a path is one, made absolute since workers stand elsewhere; other names are the hub's."""
    return str(Path(model).expanduser().resolve()) if model.startswith(("/", "./", "../", "~")) else model


ModelName = Annotated[str, Field(min_length=1), AfterValidator(_folder_or_name)]


class Settings(BaseModel):
    """Frozen settings; an unknown key, an infinity and a NaN are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
