"""One file per stage: typed config + the run's earlier artifacts in, artifacts + a manifest entry out."""

from __future__ import annotations

import importlib
from types import ModuleType

ORDER = (
    "ingest",
    "interpret",
    "project",
    "quantize",
    "features",
    "rank",
    "generate",
    "evaluate",
    "evidence",
    "ablation",
    "report",
)


def stage_module(name: str) -> ModuleType:
    """The file of a stage; see `workflows.stage` for what it declares."""
    return importlib.import_module(f"workflows.stages.{name}")
