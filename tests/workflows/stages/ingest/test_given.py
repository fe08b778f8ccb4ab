from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from storage.errors import UserError
from workflows.stages.ingest.given import given_columns, widths_of


def read(**columns: object) -> dict[str, pl.Series]:
    rows = len(next(iter(columns.values())))  # type: ignore[call-overload, arg-type]
    raw = pl.DataFrame({"item_id": [f"i{n}" for n in range(rows)], **columns})
    return {column.name: column for column in given_columns(raw, "items.csv")}


def test_columns_get_the_contracts_types() -> None:
    found = read(
        caption=["a <b>red</b> hat", "", None],
        interests=[["hats ", ""], None, []],
        embedding=np.arange(6, dtype=np.float64).reshape(3, 2),
        image_vector=[[1, 2, 3], None, []],
    )
    assert found["caption"].to_list() == ["a red hat", None, None]
    assert found["interests"].to_list() == [["hats"], None, None]
    assert found["embedding"].to_arrow().type == pa.list_(pa.float32(), 2)
    assert found["embedding"].to_list() == [[0, 1], [2, 3], [4, 5]]
    assert found["image_vector"].to_list() == [[1, 2, 3], None, None]
    assert found["vector_not_finite"].null_count() == 3


@pytest.mark.parametrize("text", ["[0.5, 2]", "0.5 2", " (0.5; 2.0) ", "[0.5 2.]"])
def test_numbers_may_be_text(text: str) -> None:
    assert read(text_vector=[text, "", None])["text_vector"].to_list() == [[0.5, 2], None, None]


@pytest.mark.parametrize("text", ["red|silk dress", "red, silk dress", "['red', 'silk dress']", '["red","silk dress"]'])
def test_tags_may_be_text(text: str) -> None:
    assert read(interests=[text])["interests"].to_list() == [["red", "silk dress"]]


def test_what_is_not_there_is_not_made() -> None:
    assert list(read(title=["a"])) == ["vector_not_finite"]


def test_later_rows_have_vectors_as_wide_as_the_first_ones() -> None:
    rows = pl.DataFrame({"item_id": ["a"], "image_vector": [[1.0, 2.0, 3.0]]})
    assert widths_of(rows, "items.csv") == {"image_vector": 3}
    assert given_columns(rows, "items.csv", {"image_vector": 3})[0].to_list() == [[1, 2, 3]]
    with pytest.raises(UserError, match="vectors of 2 and of 3 numbers"):
        given_columns(rows, "items.csv", {"image_vector": 2})


@pytest.mark.parametrize("wrong", [[np.nan, 1.0], [1.0, np.inf], [None, 1.0]])
def test_a_vector_that_is_not_finite_is_null_and_told(wrong: list[float]) -> None:
    found = read(image_vector=[[1.0, 2.0], wrong, None], text_vector=[[1.0], [2.0], None])
    assert found["image_vector"].to_list() == [[1, 2], None, None]
    assert found["vector_not_finite"].to_list() == [None, "image_vector", None]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"embedding": [[1.0], [1.0, 2.0], [3.0]]}, r"vectors of 1 and of 2 numbers \(such as that of 'i1'\)"),
        ({"embedding": [[1.0], None]}, r"1 of 2 items .* no embedding of finite numbers \(such as 'i1'\)"),
        ({"embedding": [[1.0], [np.nan]]}, r"1 of 2 items .* no embedding of finite numbers \(such as 'i1'\)"),
        ({"image_vector": [None, None]}, "column 'image_vector' without any vector"),
        ({"text_vector": [True, False]}, "'text_vector' that cannot be read .* write lists of numbers"),
        ({"interests": [3, 4]}, "'interests' that cannot be read .* write lists of text"),
    ],
)
def test_what_cannot_be_used_is_told_in_a_sentence(columns: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=rf"^items\.csv|^\d.*{said}|{said}") as error:
        read(**columns)
    assert str(error.value).endswith(".")
    assert error.match(said)
