"""What every stage file declares and receives.

A stage file in `workflows/stages/` has:

    VERSION: int               raised when results change
    INPUTS: tuple[str, ...]    stages whose artifacts it reads
    class Config(StageConfig)  its settings, with defaults
    def run(config, context) -> Result
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from storage.run import RunDir


class StageConfig(BaseModel):
    """Settings of a stage; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Context:
    """What a stage gets from the runner."""

    run: RunDir
    catalog: str  # URI of the catalogue, as the definition names it
    seed: int
    resume: bool  # an incomplete attempt with the same fingerprint left work to go on from
    log: Callable[[str], None]  # one line for the user
    fingerprint: str


@dataclass(frozen=True)
class Result:
    """What a stage gives back for the manifest; rows_in = rows_out + rejected."""

    rows_in: int
    rows_out: int
    rejected: int = 0
    degraded: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
