"""The run before this one, from which stages take over what they would else make anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def learned_until(previous: str | None, stage: str) -> int | None:
    """Returns the time, microseconds, before which the models of an earlier run's stage have learned from every event.

    None without such a run, or where no time parts what they have learned from the rest.
    """
    if previous is None or not has_finished(previous, stage):
        return None
    until: int | None = require_manifest(previous).stages[stage].metrics.get("learned_until")
    return until


def going_on(previous: str | None, stage: str, cuts: Sequence[int], log: Callable[[str], None]) -> str | None:
    """Returns the earlier run whose models a stage goes on from; None, and a line says so, where these know too much.

    They may have learned from what is held back now where training ends earlier than theirs, or where one of both is
    split by time alone.

    Args:
        previous: URI of the earlier run, if there is one.
        stage: whose models go on.
        cuts: times at which this run's log is split; see `operators.log.partitions.PartitionedLog.cuts`.
        log: is given the line.
    """
    if not has_finished(previous, stage):
        return previous
    until = learned_until(previous, stage)
    if (until is None and not cuts) or (until is not None and cuts and until <= cuts[0]):
        return previous
    log(f"{stage} begins anew: {previous} may have learned from events that this run holds back")
    return None


def fingerprint_of(previous: str, stage: str) -> str:
    """Returns what tells one result of a stage of an earlier run from another; empty where it never had the stage."""
    return require_manifest(previous).stages.get(stage, StageEntry()).fingerprint
