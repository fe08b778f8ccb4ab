from __future__ import annotations

import numpy as np
import pytest

from models.semantic_ids import layout
from storage.hashing import hash_order


def clusters(rng, *, size=20, width=60):
    """Three far groups of rows, and the group of each."""
    centres = rng.normal(0.0, 10.0, (3, width))
    vectors = np.repeat(centres, size, 0) + rng.normal(size=(3 * size, width))
    return vectors.astype(np.float32), np.repeat(np.arange(3), size)


def nearest(positions):
    distances = np.square(positions[:, None] - positions).sum(-1)
    np.fill_diagonal(distances, np.inf)
    return distances.argmin(1)


def test_neighbours_stay_neighbours():
    vectors, groups = clusters(np.random.default_rng(0))
    positions = layout.layout(vectors, seed=0)
    assert positions.shape == (60, 2)
    assert positions.dtype == np.float32
    assert (groups[nearest(positions)] == groups).all()


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_few_rows_have_places_of_their_own(rows, width):
    vectors = np.random.default_rng(rows).normal(size=(rows, width)).astype(np.float32)
    positions = layout.layout(vectors, seed=0)
    assert positions.shape == (rows, 2)
    assert np.isfinite(positions).all()
    assert len(np.unique(positions, axis=0)) == rows


def test_four_rows_in_a_plane_keep_their_distances():
    plane = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)
    positions = layout.layout(plane, seed=0)
    want, got = (np.linalg.norm(points[:, None] - points, axis=-1) for points in (plane, positions))
    np.testing.assert_allclose(got / got.max(), want / want.max(), atol=1e-5)


@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_equal_vectors_stand_in_one_place(distinct):
    rng = np.random.default_rng(2)
    rows = rng.permutation(np.arange(40) % distinct)
    positions = layout.layout(rng.normal(size=(distinct, 8)).astype(np.float32)[rows], seed=0)
    assert np.isfinite(positions).all()
    for row in range(distinct):
        assert len(np.unique(positions[rows == row], axis=0)) == 1
    assert len(np.unique(positions, axis=0)) == distinct


@pytest.mark.parametrize("scale", [1e-30, 1e12])
def test_the_scale_of_the_vectors_does_not_matter(scale):
    vectors, groups = clusters(np.random.default_rng(3), size=4)
    positions = layout.layout(vectors * np.float32(scale), seed=0)
    assert (groups[nearest(positions)] == groups).all()


def test_the_order_of_the_rows_does_not_matter():
    rng = np.random.default_rng(4)
    vectors, _ = clusters(rng)
    order = rng.permutation(len(vectors))
    assert np.array_equal(layout.layout(vectors[order], seed=0), layout.layout(vectors, seed=0)[order])


def test_the_map_holds_items_chosen_by_hash_with_their_own_codes(monkeypatch):
    monkeypatch.setattr(layout, "MAP_ITEMS", 12)
    vectors, groups = clusters(np.random.default_rng(5))
    ids = [f"i{row}" for row in range(60)]
    codes = np.column_stack([groups + 7, np.arange(60)])
    table = layout.map_table(ids, vectors, codes, codes[:, ::-1], seed=0)
    chosen = hash_order(ids)[:12]
    assert table.column_names == ["item_id", "x", "y", "code", "naive_code"]
    assert table["item_id"].to_pylist() == [ids[row] for row in chosen]
    assert table["code"].to_pylist() == (groups[chosen] + 7).tolist()
    assert table["naive_code"].to_pylist() == chosen.tolist()
    np.testing.assert_array_equal(np.column_stack([table["x"], table["y"]]), layout.layout(vectors[chosen], seed=0))


def test_a_map_without_ids_to_compare_with(monkeypatch):
    vectors, groups = clusters(np.random.default_rng(6), size=1)
    table = layout.map_table(["a", "b", "c"], vectors, groups[:, None], None, seed=0)
    assert table["naive_code"].to_pylist() == [None] * 3
    assert table.schema.field("naive_code").type == table.schema.field("code").type
