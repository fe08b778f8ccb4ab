from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import TypeAdapter, ValidationError

from serving.catalogue import Catalogue, _attributes
from serving.filters import Filter

FILTER: TypeAdapter[Filter] = TypeAdapter(Filter)


@pytest.fixture(scope="module")
def catalogue(finished_run) -> Catalogue:
    return Catalogue(finished_run)


def holds(value: Any, attributes: dict[str, str]) -> bool:
    """Says by hand whether an item matches a filter."""
    if "all" in value:
        return all(holds(part, attributes) for part in value["all"])
    if "any" in value:
        return any(holds(part, attributes) for part in value["any"])
    if "not" in value:
        return not holds(value["not"], attributes)
    own = attributes.get(value["attribute"])
    if own is None:
        return False
    if "in" in value:
        return own in value["in"]
    return value.get("at_least", -1e9) <= float(own) <= value.get("at_most", 1e9)


@pytest.mark.parametrize(
    "where",
    [
        {"attribute": "kind", "in": ["1", "3"]},
        {"attribute": "kind", "at_least": 2},
        {"attribute": "kind", "at_least": 1, "at_most": 2.5},
        {"not": {"attribute": "kind", "in": ["1"]}},
        {"attribute": "colour", "in": ["red"]},
        {"any": [{"attribute": "kind", "in": ["0"]}, {"attribute": "kind", "at_least": 3}]},
        {"all": [{"attribute": "kind", "at_most": 2}, {"not": {"attribute": "kind", "in": ["0", "2"]}}]},
    ],
)
def test_a_filter_matches_what_it_says(catalogue, where) -> None:
    found = catalogue.matching(FILTER.validate_python(where)).tolist()
    rows = catalogue.shown["attributes"].to_pylist()
    assert found == [holds(where, dict(row or ())) for row in rows]
    assert any(found) or where.get("attribute") == "colour"


@pytest.mark.parametrize(
    "where", [{}, {"attribute": "kind"}, {"attribute": "kind", "in": ["1"], "at_least": 1}, {"all": []}, {"nor": []}]
)
def test_what_is_no_filter(where) -> None:
    with pytest.raises(ValidationError):
        FILTER.validate_python(where)


def test_rows_are_found_by_id(catalogue) -> None:
    ids = catalogue.ids.to_pylist()
    assert catalogue.rows([ids[7], "no item", ids[0]]).tolist() == [7, -1, 0]
    assert catalogue.rows([]).tolist() == []


def test_what_is_not_finite_is_no_number() -> None:
    column = pa.chunked_array(
        [pa.array([[("price", text)] for text in ("2", "inf", "1e999", "nan")], pa.map_(*[pa.string()] * 2))]
    )
    (_, _, numbers) = _attributes(column)["price"]
    assert numbers[0] == 2
    assert np.isnan(numbers[1:]).all()
