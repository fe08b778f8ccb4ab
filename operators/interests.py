"""Mine interests out of an item's texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import pyarrow as pa

from models.chat.base import Failure
from models.interests.keywords import Keywords
from models.interests.mining import ItemText, Miner
from operators.base import Operator, set_columns, with_failures


@dataclass(frozen=True)
class Interests(Operator):
    """Up to four short tags of an item and kind, lower-case, the strongest first; intents before keywords.

    NULL where no text holds any. Where the miner fails it is NULL too, and the item gets an issue of severity
    `degraded` with the miner's code. `interest_kinds` has the kind of every tag.

    Attributes:
        miner: model that finds the tags.
    """

    miner: Miner = field(default_factory=Keywords)

    input_columns: ClassVar[tuple[str, ...]] = ("title", "description", "caption", "issues")
    key_columns: ClassVar[tuple[str, ...]] = ("title", "description", "caption")

    @property
    def output_schema(self) -> pa.Schema:
        """Interests, and the kind of each (`intent`, `keyword`): lists of strings."""
        return pa.schema([(name, pa.list_(pa.string())) for name in ("interests", "interest_kinds")])

    def setup(self) -> None:
        self.miner.load()

    def __call__(self, table: pa.Table) -> pa.Table:
        texts = [ItemText(*row) for row in zip(*(table[name].to_pylist() for name in self.key_columns), strict=True)]
        rows = [row for row, text in enumerate(texts) if any(part and part.strip() for part in text)]
        interests: list[list[str] | None] = [None] * len(texts)
        kinds: list[list[str] | None] = [None] * len(texts)
        failures: dict[int, list[Failure]] = {}
        for row, tags in zip(rows, self.miner.mine([texts[row] for row in rows]), strict=True):
            if isinstance(tags, Failure):
                failures[row] = [tags]
            elif any(tags.values()):
                interests[row] = [tag for of_kind in tags.values() for tag in of_kind]
                kinds[row] = [kind for kind, of_kind in tags.items() for _ in of_kind]
        columns = dict(zip(self.output_schema.names, (interests, kinds), strict=True))
        tags_of = {name: pa.array(values, pa.list_(pa.string())) for name, values in columns.items()}
        return set_columns(table, {**tags_of, "issues": with_failures(table["issues"], failures)})
