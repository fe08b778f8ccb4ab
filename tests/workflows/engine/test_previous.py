"""Which earlier runs the models of a stage go on from."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.manifest import Manifest, StageEntry, write_manifest
from workflows.engine.previous import going_on


@pytest.mark.parametrize(
    ("until", "cuts", "on"),
    [(5, (5, 8), True), (5, (7, 8), True), (5, (4, 8), False), (5, (), False), (None, (5, 8), False), (None, (), True)],
)
def test_models_that_know_what_is_held_back_begin_anew(
    tmp_path: Path, until: int | None, cuts: tuple[int, ...], on: bool
) -> None:
    previous, said = str(tmp_path / "before"), list[str]()
    entry = StageEntry(state="complete", metrics={"learned_until": until})
    write_manifest(previous, Manifest(name="shop", stages={"rank": entry}))
    assert going_on(previous, "rank", cuts, said.append) == (previous if on else None)
    assert [line.startswith(f"rank begins anew: {previous}") for line in said] == [True] * (not on)
    assert going_on(previous, "generate", cuts, said.append) == previous  # which has nothing to go on from
    assert going_on(None, "rank", cuts, said.append) is None
