"""What a generator learns to write: a registry of tasks, one YAML file each.

The eight that are there close the triangle of semantic ID, text and image of TriAlignGR (arXiv 2605.05249). The paper
names the two that read captions; the other six are those of SIDReasoner, which it builds on. The wording is ours.
"""

from __future__ import annotations

import difflib
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from models.common.settings import Settings, parse_yaml, read_text
from storage.errors import UserError

FOLDER = Path(__file__).parent / "tasks"  # a file's name begins with its task's place in the order

OF_HISTORY, OF_ITEM = ("sids", "titles"), ("sid", "title", "caption")  # what a prompt may show


class Task(Settings):
    """A prompt about a user's history or about one item, and what is to follow it.

    Attributes:
        description: for people.
        prompt: text with placeholders: {sids} and {titles}, a user's last items, oldest first; {sid}, {title} and
            {caption} of the item that is asked for.
        target: what of the item is to follow.
        optional: whether the task is left out where no item has what it shows and asks for; else that is an error.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    description: str = ""
    prompt: str
    target: Literal["sid", "title"]
    optional: bool = False

    @property
    def pieces(self) -> tuple[tuple[str, str | None], ...]:
        """The text before each placeholder and the placeholder's name; None after the last one."""
        return tuple((text, name) for text, name, _, _ in string.Formatter().parse(self.prompt))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The placeholders of the prompt."""
        return tuple(name for _, name in self.pieces if name is not None)

    @property
    def over_histories(self) -> bool:
        """Whether it recommends; otherwise it is about the content of one item."""
        return self.inputs[0] in OF_HISTORY

    @property
    def every_position(self) -> bool:
        """Whether each beginning of a history is a prompt as well, so that every item but the first is an answer.

        So it is where the answer is a SID right behind those of the history, with no text between.
        """
        return self.inputs == ("sids",) and self.target == "sid" and self.prompt.endswith("{sids}")

    @property
    def columns(self) -> frozenset[str]:
        """The columns of the catalogue that an item must have here: `title`, `caption`."""
        return frozenset({name.removesuffix("s") for name in self.inputs} | {self.target}) - {"sid"}

    @field_validator("prompt")
    @classmethod
    def _placeholders_are_known(cls, prompt: str) -> str:
        known = ", ".join(f"{{{name}}}" for name in OF_HISTORY + OF_ITEM)
        parsed = [part for part in string.Formatter().parse(prompt) if part[1] is not None]
        for _, name, form, conversion in parsed:
            if name not in OF_HISTORY + OF_ITEM or form or conversion:
                raise ValueError(f"the placeholder {{{name}}} is unknown: write one of {known}")
        if not parsed:
            raise ValueError(f"the prompt shows nothing: write a placeholder into it, one of {known}")
        if 0 < sum(name in OF_HISTORY for _, name, _, _ in parsed) < len(parsed):
            raise ValueError("a prompt is about a history or about an item: write two tasks")
        return prompt

    @model_validator(mode="after")
    def _target_is_not_shown(self) -> Task:
        if self.target in self.inputs:
            raise ValueError(f"the prompt shows the target: take {{{self.target}}} out of it")
        return self


SEQUENCE = Task(name="sequence", prompt="{sids}", target="sid")  # the one task of a generator without text


def load_tasks(names: Sequence[str] = ()) -> tuple[Task, ...]:
    """Tasks, in the order in which they are named; without names all of the registry.

    Args:
        names: of the registry, or paths of YAML files of one's own, which end in `.yaml` or `.yml`.

    Raises:
        UserError: there is no such task, a file is none, or two tasks have one name.
    """
    registry = {task.name: task for task in (_read(str(file)) for file in sorted(FOLDER.glob("*.yaml")))}
    tasks = []
    for name in names or registry:
        if name.endswith((".yaml", ".yml")):
            tasks.append(_read(name))
        elif name in registry:
            tasks.append(registry[name])
        else:
            near = difflib.get_close_matches(name, registry, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose among {', '.join(registry)}, or name a YAML file."
            raise UserError(f"There is no task {name!r}: {hint}")
    for task in tasks:
        if sum(other.name == task.name for other in tasks) > 1:
            raise UserError(f"Two tasks are called {task.name!r}: leave one out, or give it another name.")
    return tuple(tasks)


def _read(path: str) -> Task:
    raw = parse_yaml(read_text(path, "task"), path)
    if not isinstance(raw, dict):
        raise UserError(f"{path} must be a YAML mapping with the keys name, description, prompt and target.")
    try:
        return Task.model_validate(raw)
    except ValidationError as error:
        problem = error.errors()[0]
        message = problem["msg"].removeprefix("Value error, ")
        key = ".".join(map(str, problem["loc"])) or "prompt"
        if problem["type"] == "missing":
            raise UserError(f"{path}: the key {key} is missing.") from error
        raise UserError(f"{path}: {key}: {message[0].lower()}{message[1:]}.") from error
