"""The stages that a definition may name, in the order in which they run."""

from __future__ import annotations

import importlib
from types import ModuleType

# Where each stage is defined, as entry points are: `tesserec --help` imports none of them.
STAGES = {
    "ingest": "workflows.stages.ingest",
    "interpret": "workflows.stages.interpret.stage",
    "project": "workflows.stages.project",
    "quantize": "workflows.stages.quantize.stage",
    "features": "workflows.stages.features",
    "rank": "workflows.stages.rank",
    "generate": "workflows.stages.generate.stage",
    "evaluate": "workflows.stages.evaluate.stage",
    "evidence": "workflows.stages.ablate_features.stage",
    "ablation": "workflows.stages.ablate_tasks.stage",
    "report": "workflows.stages.report",
}
ORDER = tuple(STAGES)


def stage_module(name: str) -> ModuleType:
    """The file of a stage; see `workflows.engine.stage` for what it declares."""
    return importlib.import_module(STAGES[name])
