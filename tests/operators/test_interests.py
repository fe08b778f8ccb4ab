from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pytest

from models.chat.base import Failure
from models.interests.mining import ItemText
from operators.base import apply, with_outcome
from operators.interests import Interests
from storage.errors import UserError


def items(*texts: tuple[str | None, str | None, str | None]) -> pa.Table:
    columns = zip(*texts, strict=True) if texts else ((), (), ())
    names = ("title", "description", "caption")
    return with_outcome(
        pa.table({name: pa.array(values, pa.string()) for name, values in zip(names, columns, strict=True)})
    )


@dataclass(frozen=True)
class Moody:
    """A miner that fails on titles that say so."""

    def load(self) -> None: ...

    def mine(self, texts: Sequence[ItemText]) -> list[list[str] | Failure]:
        assert all(any(text) for text in texts), "an item without a text reached the miner"
        if any(text.title == "no such model" for text in texts):
            raise UserError("There is no such model.")
        return [Failure("unparsable_interests", "why") if t.title == "odd" else [str(t.title), "tag"] for t in texts]


def test_every_row_gets_its_own_tags():
    table = items(("Red Wool Scarf", None, None), (None, "A tin cup.", None), (None, None, "A picture of umbrella."))
    result = apply(Interests(), table)
    scarf, cup, umbrella = result["interests"].to_pylist()
    assert "scarf" in " ".join(scarf)
    assert "tin cup" in cup
    assert umbrella == ["umbrella"]
    assert result["issues"].to_pylist() == [[], [], []]
    assert result.schema.field("interests") == Interests().output_schema.field("interests")


def test_without_text_there_are_no_tags_and_no_issue():
    result = apply(Interests(Moody()), items((None, "", "  "), ("scarf", None, None)))
    assert result["interests"].to_pylist() == [None, ["scarf", "tag"]]
    assert result["issues"].to_pylist() == [[], []]
    assert apply(Interests(), items(("17", None, None)))["interests"].to_pylist() == [None]


def test_a_failure_degrades_its_row_alone_and_keeps_earlier_issues():
    table = items(("scarf", None, None), ("odd", None, None))
    known = {"severity": "degraded", "code": "missing", "detail": "x.jpg"}
    column = table.schema.get_field_index("issues")
    table = table.set_column(column, "issues", pa.array([[], [known]], table["issues"].type))
    result = apply(Interests(Moody()), table)
    assert result["interests"].to_pylist() == [["scarf", "tag"], None]
    failed = {"severity": "degraded", "code": "unparsable_interests", "detail": "why"}
    assert result["issues"].to_pylist() == [[], [known, failed]]
    assert result["outcome"].to_pylist() == ["kept", "kept"]


def test_a_setting_that_cannot_work_ends_the_run():
    with pytest.raises(UserError):
        apply(Interests(Moody()), items(("scarf", None, None), ("no such model", None, None)))


def test_an_empty_batch_has_the_columns():
    result = apply(Interests(), items())
    assert result.num_rows == 0
    assert result.schema.field("interests").type == pa.list_(pa.string())
