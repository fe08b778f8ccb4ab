"""The manifest of a run: the one schema of `manifest.json` and of `tesserec show --json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage import files
from storage.errors import ArtifactError, UserError

State = Literal["pending", "running", "interrupted", "complete", "failed"]


class StageEntry(BaseModel):
    """What is known of one stage; rows_in = rows_out + rejected once it is complete."""

    model_config = ConfigDict(extra="forbid")

    state: State = "pending"
    fingerprint: str = ""
    rows_in: int = 0
    rows_out: int = 0
    rejected: int = 0
    degraded: int = 0
    seconds: float = 0.0
    rows_per_second: float = 0.0
    started: str = ""  # ISO 8601, UTC
    error: str = ""
    metrics: dict[str, Any] = Field(default_factory=dict)


class Manifest(BaseModel):
    """The stages of a run, in their order, and a line for each of their parts that the catalogue cannot feed."""

    model_config = ConfigDict(extra="forbid")

    name: str
    version: int = 1
    stages: dict[str, StageEntry] = Field(default_factory=dict)
    left_out: list[str] = Field(default_factory=list)


def read_manifest(root: str) -> Manifest | None:
    """Returns the manifest of a run directory, or None where there is none.

    Raises:
        UserError: the file is damaged; or see `files.probe`.
    """
    uri = files.join(root, "manifest.json")
    try:
        return Manifest.model_validate(files.read_json(uri))
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise UserError(f"{uri} is not a tesserec manifest: name another folder, or remove that one.") from error
    except Exception as error:
        files.probe(root)  # tells why a store does not give it
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return None
        raise


def require_manifest(root: str) -> Manifest:
    """Returns the manifest of a run that must be there.

    Raises:
        ArtifactError: it is not.
        UserError: it is damaged.
    """
    if (manifest := read_manifest(root)) is None:
        raise ArtifactError(f"There is no run at {root}", files.join(root, "manifest.json"))
    return manifest


def first_unfinished(root: str, stages: Iterable[str]) -> tuple[str, str] | None:
    """Returns the first of some stages that is not complete in the run at `root`, with its state; None where all are.

    Raises:
        UserError: there is no run, or its manifest is damaged.
    """
    entries = require_manifest(root).stages
    states = ((stage, entries.get(stage, StageEntry()).state) for stage in stages)
    return next(((stage, state) for stage, state in states if state != "complete"), None)


def require_finished(root: str, stages: Sequence[str], lack: str) -> None:
    """Makes sure that some stages of the run at `root` are complete.

    Args:
        root: URI of the run directory.
        stages: in their order.
        lack: what the run is not good for before, for errors: "cannot be served".

    Raises:
        UserError: there is no run, or one of the stages is not complete.
    """
    if unfinished := first_unfinished(root, stages):
        raise UserError(
            f"The run at {root} {lack} yet, its stage {unfinished[0]} is {unfinished[1]}: finish it with `tesserec run "
            f"WORKFLOW --run-dir {root}`, WORKFLOW naming the stages up to {stages[-1]}."
        )


def write_manifest(root: str, manifest: Manifest) -> None:
    """Replaces the manifest atomically."""
    files.write_json(files.join(root, "manifest.json"), manifest.model_dump())
