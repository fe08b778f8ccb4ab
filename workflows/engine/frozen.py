"""Artifacts that a run takes over from an earlier one instead of fitting its own."""

from __future__ import annotations

from typing import Any

import xxhash

from storage import files
from storage.errors import UserError
from storage.manifest import first_unfinished
from storage.run import RunDir


def check_frozen(frozen: str, root: str, stage: str) -> None:
    """Find an earlier run that cannot be taken over from.

    Raises:
        UserError: it is this very run, or there is none, or it has not finished the stage.
    """
    if files.absolute(frozen) == files.absolute(root):
        raise UserError(f"stages.{stage}.frozen names this very run: name an earlier one.")
    if found := first_unfinished(frozen, [stage]):
        raise UserError(
            f"stages.{stage}.frozen names {frozen}, whose stage {stage} is {found[1]}: finish that run first."
        )


def frozen_identity(frozen: str | None, *parts: str) -> dict[str, Any] | None:
    """What a stage takes over, by content: digests of all files in some folders of an earlier run."""
    if frozen is None:
        return None
    found: dict[str, Any] = {}
    for part in parts:
        fs, path = files.filesystem(RunDir(frozen).uri(*part.split("/")))
        names = sorted(fs.find(path)) if fs.exists(path) else []
        found[part] = [xxhash.xxh3_64_hexdigest(fs.cat_file(name)) for name in names]
    return found
