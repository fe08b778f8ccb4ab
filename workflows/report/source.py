"""The inputs of a report: a run's manifest, its definition, and the files of its finished stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from storage import files
from storage.hashing import hash_order
from storage.manifest import Manifest, StageEntry, require_manifest
from storage.run import RunDir
from workflows.engine.registry import ORDER


@dataclass(frozen=True)
class Source:
    """Read access to a run for a report.

    Artifacts are valid only when their stage is complete, so every reader checks that first.
    """

    run: RunDir
    manifest: Manifest
    definition: dict[str, Any]  # the resolved workflow.yaml; empty if the run has none

    @property
    def catalog(self) -> str:
        """Returns the URI of the catalogue."""
        return str(self.definition.get("catalog", ""))

    @property
    def stages(self) -> dict[str, StageEntry]:
        """Returns every stage that is in the definition or has run, in order, without the report itself."""
        named = self.definition.get("stages") or {}
        entries = self.manifest.stages
        order = [name for name in ORDER if name != "report" and (name in named or name in entries)]
        return {name: entries.get(name, StageEntry()) for name in order}

    def settings(self, stage: str) -> dict[str, Any]:
        """Returns the settings of a stage."""
        return (self.definition.get("stages") or {}).get(stage) or {}

    def complete(self, stage: str) -> bool:
        """Returns whether a stage has written all its artifacts."""
        entry = self.manifest.stages.get(stage)
        return entry is not None and entry.state == "complete"

    def metrics(self, stage: str) -> dict[str, Any]:
        """Returns the metrics of a stage; empty if it is not complete."""
        return self.manifest.stages[stage].metrics if self.complete(stage) else {}

    def fit(self, stage: str) -> dict[str, Any]:
        """Returns `metrics/STAGE.json`, a bare list as its history; empty if the stage is not complete."""
        content = self._json(stage, "metrics", f"{stage}.json")
        return {"history": content} if isinstance(content, list) else content

    def model(self, stage: str, name: str) -> dict[str, Any]:
        """Returns the config of a model that a stage wrote; empty if the stage is not complete."""
        config: dict[str, Any] = self._json(stage, "models", name, "config.json")
        return config

    def sample(self, size: int, *folder: str) -> list[str]:
        """Returns the ids of the first items in hash order, in this order; holds a batch of the folder at a time."""
        chosen = pa.array([], pa.string())
        for batch in files.batches(self.run.uri(*folder), ["item_id"], files.PART_ROWS):
            ids = pa.concat_arrays([chosen, batch["item_id"]])
            chosen = ids.take(pa.array(hash_order(ids)[:size]))
        names: list[str] = chosen.to_pylist()
        return names

    def rows(self, ids: list[str], *folder: str, columns: list[str]) -> dict[str, dict[str, Any]]:
        """Returns columns of some items in one of the run's Parquet folders, by item_id; without missing items."""
        wanted = pc.field("item_id").isin(pa.array(ids, pa.string()))
        table = files.dataset(self.run.uri(*folder)).to_table(columns=["item_id", *columns], filter=wanted)
        return {row["item_id"]: row for row in table.to_pylist()}

    def _json(self, stage: str, *parts: str) -> Any:
        uri = self.run.uri(*parts)
        return files.read_json(uri) if self.complete(stage) and files.exists(uri) else {}


def read_source(run: RunDir) -> Source:
    """Reads the manifest and the definition of a run.

    Raises:
        UserError: there is no run.
    """
    manifest = require_manifest(run.root)
    uri = run.uri("workflow.yaml")
    definition = yaml.safe_load(files.read_bytes(uri)) if files.exists(uri) else {}
    return Source(run, manifest, definition)
