"""Artifacts that a run copies from an earlier one instead of fitting its own."""

from __future__ import annotations

from typing import Any

import xxhash

from storage import files
from storage.errors import UserError
from storage.manifest import first_unfinished


def check_frozen(frozen: str, root: str, stage: str) -> None:
    """Checks that the artifacts of an earlier run can be used.

    Raises:
        UserError: the run is this very run, does not exist, or has not finished the stage.
    """
    if files.absolute(frozen) == files.absolute(root):
        raise UserError(f"stages.{stage}.frozen names this very run: name an earlier one.")
    if unfinished := first_unfinished(frozen, [stage]):
        raise UserError(
            f"stages.{stage}.frozen names {frozen}, whose stage {stage} is {unfinished[1]}: finish that run first."
        )


def frozen_identity(frozen: str | None, *parts: str) -> dict[str, Any] | None:
    """Returns digests of all files in the given folders of an earlier run; None without a run."""
    if frozen is None:
        return None
    digests: dict[str, Any] = {}
    for part in parts:
        fs, path = files.filesystem(files.join(frozen, part))
        names = sorted(fs.find(path)) if fs.exists(path) else []
        digests[part] = [xxhash.xxh3_64_hexdigest(fs.cat_file(name)) for name in names]
    return digests
