"""The run after a run: its definition, its place, and what a scheduler is told of it."""

from __future__ import annotations

import re

import yaml

from models.evaluation.verdict import KEEP, PROMOTE
from storage import files, tables
from storage.errors import UserError
from storage.manifest import Manifest, StageEntry, require_finished, require_manifest
from storage.run import RunDir
from workflows.engine.definition import Definition, definition_of, dump, overridden, resolve

JUDGED = ("rank", "generate")  # stages whose models are compared with those of the run before
TAKEN_OVER = ("project", "quantize", "features", *JUDGED)
ABLATIONS = ("ablate_features", "ablate_tasks")  # which compare fits from scratch
STATUS = {PROMOTE: 0, KEEP: 3}  # of the command, by verdict
REFIT_STATUS = 4


def next_definition(root: str, catalog: str, target: str, overrides: list[str]) -> Definition:
    """Returns the definition of the run that goes on from the one at `root` with newer data.

    Args:
        root: URI of the run before.
        catalog: URI of the newer catalogue.
        target: URI of the next run.
        overrides: as of `tesserec run`.

    Raises:
        UserError: there is no run at `root`, or it has not finished, or there is one of other data at `target`; or see
            `definition.resolve`.
    """
    root, catalog = files.absolute(root), files.absolute(catalog)
    raw = yaml.safe_load(dump(definition_of(RunDir(root))))
    begun = require_manifest(root).stages
    needed = [name for name in raw["stages"] if name == "interpret" or (name in begun and name in TAKEN_OVER)]
    require_finished(root, needed, "cannot be updated")
    for settings in raw["stages"].values():
        settings.pop("previous", None)
    for name in ABLATIONS:
        raw["stages"].pop(name, None)
    before, elsewhere = raw["catalog"], tables.exported(catalog)  # media of an export stay where they are
    if "interpret" in raw["stages"] and elsewhere and before != catalog and not before.startswith(("http:", "https:")):
        fetch = raw["stages"]["interpret"]["fetch"]
        fetch["roots"] = list(dict.fromkeys([*fetch["roots"], before]))
    if any(name in raw["stages"] for name in JUDGED):
        raw["stages"] = {"evaluate": {}, "report": {}, **raw["stages"]}
    following = {**raw, "catalog": catalog, "previous": root}
    definition = resolve(overridden(following, overrides), source=f"The definition of {root}")
    run = RunDir(files.absolute(target))
    if files.exists(run.uri("workflow.yaml")):
        there = definition_of(run)
        if (there.previous, there.catalog) != (definition.previous, definition.catalog):
            raise UserError(
                f"{target} holds a run of other data than an update of {root} to {catalog}: name another --run-dir."
            )
    return definition


def next_root(root: str) -> str:
    """Returns the place of the run after a run, unless the user names one: its number is one more.

    >>> next_root("runs/shop"), next_root("s3://bucket/shop-9/")
    ('runs/shop-2', 's3://bucket/shop-10')
    """
    name, number = re.fullmatch(r"(.*?)(?:-(\d+))?", root.rstrip("/")).groups()  # type: ignore[union-attr]
    return f"{name}-{int(number or 1) + 1}"


def verdict_of(manifest: Manifest) -> tuple[str, list[str]] | None:
    """Returns the verdict on an update and its reasons; None where its models were not compared."""
    found = manifest.stages.get("evaluate", StageEntry()).metrics.get("update")
    return (found["verdict"], found["reasons"]) if found else None


def status_of(manifest: Manifest) -> int:
    """Returns the status of the command: 0 to promote, 3 to keep the old run, 4 to fit one anew."""
    verdict = verdict_of(manifest)
    return 0 if verdict is None else STATUS.get(verdict[0], REFIT_STATUS)
