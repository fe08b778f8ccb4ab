from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.semantic_ids.prefixes import number_prefixes, number_rows


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 5).flatmap(lambda levels: st.lists(st.lists(st.integers(-1, 3), min_size=levels, max_size=levels)))
)
def test_rows_and_prefixes_are_numbered_in_their_order(rows: list[list[int]]) -> None:
    codes = np.array(rows, np.int32).reshape(len(rows), -1 if rows and rows[0] else 0)
    distinct = sorted({tuple(row) for row in rows})
    assert number_rows(codes).tolist() == [distinct.index(tuple(row)) for row in rows]
    prefixes = number_prefixes(torch.from_numpy(codes))
    assert len(prefixes) == codes.shape[1] + 1
    for depth, numbers in enumerate(prefixes):
        distinct = sorted({tuple(row[:depth]) for row in rows})
        assert numbers.tolist() == [distinct.index(tuple(row[:depth])) for row in rows]
        assert numbers.dtype == torch.int64
