"""What the documentation says, taken apart: fenced blocks and words in backticks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "cluster/README")),
    ]
)
FENCE = re.compile(r"^( *)```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    title: str
    text: str


def blocks(path: Path, language: str) -> list[Block]:
    """Find the fenced blocks of one language."""
    found = FENCE.findall(path.read_text(encoding="utf-8"))
    return [Block(kind, title, text) for _, kind, title, text in found if kind == language]


def commands(path: Path) -> list[str]:
    """List the commands of the `console` blocks, without comments."""
    lines = [line.split("  #")[0].strip() for block in blocks(path, "console") for line in block.text.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line]


def quoted(path: Path) -> list[str]:
    """List the words in backticks outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", path.read_text(encoding="utf-8")))


def name_of(path: Path) -> str:
    """The path of a page inside the repository."""
    return str(path.relative_to(REPOSITORY))
