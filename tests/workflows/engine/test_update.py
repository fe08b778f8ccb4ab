"""The definition of the run after a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage import files
from storage.errors import UserError
from storage.manifest import Manifest, StageEntry, write_manifest
from workflows.engine.definition import Definition, dump, resolve
from workflows.engine.update import next_definition
from workflows.stages.interpret.stage import items_schema, recipe_of

EXPORTED = {"partitions_of": {"ingest": "f", "files": {}}}


def written(folder: Path, catalog: str, *roots: str) -> Definition:
    """The definition of a run with a stage that looks at pictures."""
    stages = {"ingest": {}, "interpret": {"fetch": {"roots": list(roots)}}}
    made = resolve({"name": "shop", "catalog": catalog, "stages": stages}, source="shop")
    return keep(folder, made)


def keep(folder: Path, made: Definition) -> Definition:
    files.write_bytes(str(folder / "workflow.yaml"), dump(made).encode())
    complete = {name: StageEntry(state="complete") for name in made.configs}
    write_manifest(str(folder), Manifest(name="shop", stages=complete))
    return made


def following(run: Path, catalog: Path, *overrides: str) -> Definition:
    return next_definition(str(run), str(catalog), f"{run}-2", list(overrides))


def test_pictures_of_an_export_may_lie_where_they_lay(tmp_path: Path) -> None:
    first, more = str(tmp_path / "catalog"), str(tmp_path / "more")
    before, export = written(tmp_path / "run", first, more), tmp_path / "export"
    files.write_json(str(export / "catalog.json"), EXPORTED)
    after = following(tmp_path / "run", export)
    assert after.stages.interpret.fetch.roots == (more, first)
    recipes = [recipe_of(each.stages.interpret, items_schema(each.stages.interpret)) for each in (before, after)]
    assert recipes[0] == recipes[1]  # so that nothing is interpreted anew for it
    keep(tmp_path / "run-2", after)
    files.write_json(str(tmp_path / "later" / "catalog.json"), EXPORTED)
    assert following(tmp_path / "run-2", tmp_path / "later").stages.interpret.fetch.roots == (more, first, str(export))
    again = following(tmp_path / "run", export, "stages.interpret.fetch.roots=[]")
    assert again.stages.interpret.fetch.roots == ()


@pytest.mark.parametrize(
    ("catalog", "roots", "about"),
    [("catalog", ("catalog",), EXPORTED), ("catalog", (), {}), ("https://host/catalog", (), EXPORTED)],
)
def test_no_place_is_allowed_twice_or_for_nothing(
    tmp_path: Path, catalog: str, roots: tuple[str, ...], about: dict
) -> None:
    here = [one if "://" in one else str(tmp_path / one) for one in (catalog, *roots)]
    written(tmp_path / "run", *here)
    files.write_json(str(tmp_path / "export" / "catalog.json"), about)
    assert list(following(tmp_path / "run", tmp_path / "export").stages.interpret.fetch.roots) == here[1:]


def test_a_run_that_has_not_finished_is_told(tmp_path: Path) -> None:
    written(tmp_path / "run", str(tmp_path / "catalog"))
    complete = {"ingest": StageEntry(state="complete"), "interpret": StageEntry(state="complete")}
    write_manifest(str(tmp_path / "run"), Manifest(name="shop", stages=complete))
    following(tmp_path / "run", tmp_path / "export")  # what was never begun gives nothing
    entries = {**complete, "interpret": StageEntry(state="failed")}
    write_manifest(str(tmp_path / "run"), Manifest(name="shop", stages=entries))
    with pytest.raises(UserError, match="cannot be updated yet, its stage interpret is failed: finish it with"):
        following(tmp_path / "run", tmp_path / "export")
