"""The run before this one, from which stages take over what they would else make anew."""

from __future__ import annotations

from storage import files
from storage.errors import UserError
from storage.manifest import StageEntry, first_unfinished, read_manifest, require_manifest


def check_previous(previous: str, root: str, stage: str) -> None:
    """Checks that a stage can build on an earlier run; one that never had the stage gives it nothing, which is fine.

    Raises:
        UserError: the run is this very run, does not exist, or has not finished the stage.
    """
    if files.absolute(previous) == files.absolute(root):
        raise UserError(f"previous names {root}, this very run: name an earlier one.")
    if (manifest := read_manifest(previous)) is None:
        raise UserError(
            f"previous names {previous}, the run that this one continues, and there is none: put it back, or set "
            "previous to null, which fits everything anew and moves all semantic IDs."
        )
    if (entry := manifest.stages.get(stage)) and entry.state != "complete":
        raise UserError(f"previous names {previous}, whose stage {stage} is {entry.state}: finish that run first.")


def has_finished(previous: str | None, stage: str) -> bool:
    """Tells whether there is an earlier run that has finished a stage."""
    return previous is not None and first_unfinished(previous, (stage,)) is None


def fingerprint_of(previous: str, stage: str) -> str:
    """Returns what tells one result of a stage of an earlier run from another; empty where it never had the stage."""
    return require_manifest(previous).stages.get(stage, StageEntry()).fingerprint
