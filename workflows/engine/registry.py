"""The stages that a definition may name, in the order in which they run."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from workflows.engine.stage import Stage

# Entry points of the stages, so that a command imports only the stages that it needs.
STAGES = {
    "ingest": "workflows.stages.ingest.stage:IngestStage",
    "interpret": "workflows.stages.interpret.stage:InterpretStage",
    "project": "workflows.stages.project:ProjectStage",
    "quantize": "workflows.stages.quantize.stage:QuantizeStage",
    "features": "workflows.stages.features.stage:FeaturesStage",
    "rank": "workflows.stages.rank:RankStage",
    "generate": "workflows.stages.generate.stage:GenerateStage",
    "evaluate": "workflows.stages.evaluate.stage:EvaluateStage",
    "ablate_features": "workflows.stages.ablate_features.stage:AblateFeaturesStage",
    "ablate_tasks": "workflows.stages.ablate_tasks.stage:AblateTasksStage",
    "adapt_captioner": "workflows.stages.adapt_captioner.stage:AdaptCaptionerStage",
    "report": "workflows.stages.report:ReportStage",
}
ORDER = tuple(STAGES)
# The stage that writes what lies at a path of a run; the first that the path contains counts.
WRITTEN_BY = {
    "checkpoints/ablate_tasks": "ablate_tasks",  # with models of its own
    "models/projector": "project",
    "models/quantizer": "quantize",
    "models/ranker": "rank",
    "models/retriever": "rank",
    "models/generator": "generate",
    "models/captioner": "adapt_captioner",
    "catalog": "ingest",
    "features": "features",
    "embeddings": "project",
    "sids": "quantize",
    "items": "interpret",
}


@functools.cache
def stage(name: str) -> Stage[Any]:
    """Returns the stage of a name and imports it at the first call."""
    module, _, kind = STAGES[name].partition(":")
    instance: Stage[Any] = getattr(importlib.import_module(module), kind)()
    return instance
