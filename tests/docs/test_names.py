"""What the pages name exists: files, functions, keys of definitions, links; and the README stays short."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from serving.rerank.rules import Rules
from serving.settings import Settings
from tests.docs.pages import DOCUMENTS, REPOSITORY, blocks, name_of, quoted
from workflows.engine.definition import resolve
from workflows.engine.registry import ORDER, stage

FOLDERS = "workflows|serving|operators|models|storage|cluster|benchmarks|tests|docs|examples|requirements"
PATH = re.compile(rf"(?:{FOLDERS})/[\w./-]*")
SYMBOL = re.compile(r"([\w./-]+\.py)::([\w.]+)")
YOURS = ("NAME", "PATH", "yours")  # of how-to pages: stands for a name of one's own


@cache
def definitions(path: Path) -> set[str]:
    """Names that a file defines at its top, and methods and fields of its classes as `Class.name`."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        found |= _defined(node)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}" for part in node.body for name in _defined(part)}
    return found


def _defined(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


@pytest.mark.parametrize("page", DOCUMENTS, ids=name_of)
def test_paths_and_symbols_exist(page: Path) -> None:
    for word in quoted(page):
        if any(name in word for name in YOURS):
            continue
        if symbol := SYMBOL.fullmatch(word):
            path, name = REPOSITORY / symbol[1], symbol[2]
            assert path.is_file(), f"there is no file {symbol[1]}"
            assert name in definitions(path), f"{symbol[1]} does not define {name}"
        elif PATH.fullmatch(word):
            assert (REPOSITORY / word).exists(), f"there is no {word}"


@pytest.mark.parametrize("page", DOCUMENTS, ids=name_of)
def test_definitions_validate(page: Path) -> None:
    for block in blocks(page, "yaml"):
        raw = yaml.safe_load(block.text)
        if raw.keys() <= Rules.model_fields.keys():
            Rules.model_validate(raw)
            continue
        if "stages" not in raw:  # of the service
            Settings.model_validate({"run": "x", "store": "x", **raw})
            continue
        stages = {name: settings or {} for name, settings in raw["stages"].items()}
        missing = [needed for name in stages for needed in _needs(name) if needed not in stages]
        stages = {name: {} for name in missing} | stages
        ordered = {name: stages[name] for name in ORDER if name in stages} | stages
        resolve({"name": "x", "catalog": "x", **raw, "stages": ordered}, source=name_of(page))


def _needs(name: str) -> set[str]:
    found = stage(name)
    direct = {*found.reads, *found.reads_one_of}
    return direct | {needed for each in direct for needed in _needs(each)}


@pytest.mark.parametrize("page", [page for page in DOCUMENTS if page.parent == REPOSITORY], ids=name_of)
def test_links_of_pages_outside_the_site_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


def test_the_readme_is_a_door_and_not_a_manual() -> None:
    lines = (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 140


def test_every_page_is_in_the_navigation() -> None:
    text = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (REPOSITORY / "docs").rglob("*.md"):
        assert str(page.relative_to(REPOSITORY / "docs")) in text
