from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from storage.identity import identity, speed


@dataclass(frozen=True)
class Model:
    name: str
    concurrency: int = speed(4)


@dataclass(frozen=True)
class Describe:
    version: ClassVar[int] = 3
    model: Model
    prompt: str = "?"


def test_identity_holds_what_results_depend_on_and_nothing_of_speed():
    assert identity(Describe(Model("a"))) == identity(Describe(Model("a", concurrency=9)))
    assert identity(Describe(Model("a"))) != identity(Describe(Model("b")))
    assert identity(Describe(Model("a"))) == {
        "class": "Describe",
        "version": 3,
        "model": {"class": "Model", "version": 1, "name": "a"},
        "prompt": "?",
    }
