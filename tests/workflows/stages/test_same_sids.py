"""The order of rows, the batches they pass in and what is known already change no vector and no semantic ID."""

from __future__ import annotations

import tempfile

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.embedding.projector import fit_projector
from models.semantic_ids.quantizer import RQKMEANS, Architecture
from models.semantic_ids.rqkmeans import fit_rqkmeans
from models.semantic_ids.suffixes import allocate_suffixes
from models.semantic_ids.training_rows import collect
from operators.base import apply, with_outcome
from operators.columns import matrix_of
from operators.gate import OPEN
from operators.project import blocks_of
from storage import files
from storage.hashing import hash_order, hash_rows
from storage.sorting import write_in_hash_order
from workflows.stages.interpret import stage as interpret

ITEMS = 12
MEDIA = pa.list_(pa.struct([("uri", pa.string()), ("kind", pa.string())]))


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory) -> tuple[str, pa.Table]:
    """Items with texts of many lengths, the first of them without a picture and two that look alike."""
    folder, noise = tmp_path_factory.mktemp("catalogue"), np.random.default_rng(0)
    words = ["red", "green", "silk", "wool", "dress", "hat", "of", "a", "with", "stripes"]
    for row in range(ITEMS):
        pixels = np.full((48, 40 + row, 3), noise.integers(0, 256, 3), np.uint8)
        pixels[8:30, 10:30] = noise.integers(0, 256, 3) if row % 7 else 200
        Image.fromarray(pixels).save(folder / f"{row}.png")
    texts = [" ".join(noise.choice(words, 1 + 5 * row)) for row in range(ITEMS)]
    items = pa.table(
        {
            "item_id": [f"i{row}" for row in range(ITEMS)],
            "title": [text[:30] for text in texts],
            "description": pa.array([text if row % 3 else None for row, text in enumerate(texts)], pa.string()),
            "media": pa.array(
                [[{"uri": f"{row}.png", "kind": "image"}] if row else None for row in range(ITEMS)], MEDIA
            ),
            "attributes": pa.nulls(ITEMS, pa.map_(pa.string(), pa.string())),
            "gate": [OPEN] * ITEMS,
        }
    )
    return str(folder), items


def interpreted(catalogue: tuple[str, pa.Table], order: list[int], size: int, cache: str | None) -> pa.Table:
    """The operators' results for some rows, in slices of `size`."""
    root, items = catalogue
    config, done = interpret.Config(), []
    for start in range(0, len(order), size):
        table = with_outcome(items.take(order[start : start + size]))
        for step in interpret.steps(config, root, cache):
            step.operator.setup()
            table = apply(step.operator, table)
        done.append(table.select(interpret.items_schema(config).names))
    return pa.concat_tables(done)


def sids(items: pa.Table) -> np.ndarray:
    """Semantic IDs by a quantizer fitted on the items, int32 [N, 4]."""
    projector = fit_projector(lambda: [blocks_of(items)], {"image_vector": 1.0, "text_vector": 1.0}, 8)
    vectors = projector.transform(blocks_of(items))
    rows = collect([(vectors, np.empty((len(vectors), 0), np.float32))], seed=7)
    quantizer = fit_rqkmeans(rows, Architecture(RQKMEANS, 8, (4, 4, 2), 8), seed=7)
    codes = quantizer.encode(rows.values.new_tensor(vectors)).numpy()
    return np.column_stack([codes, allocate_suffixes(items["item_id"].to_pylist(), codes, hash_rows(vectors))])


@pytest.fixture(scope="module")
def reference(catalogue) -> tuple[pa.Table, np.ndarray]:
    items = interpreted(catalogue, list(range(ITEMS)), 1, None)
    items = items.take(hash_order(items["item_id"].to_pylist()))
    assert items["image_vector"].null_count == 1
    return items, sids(items)


@settings(max_examples=4)
@given(
    order=st.permutations(range(ITEMS)),
    size=st.sampled_from([2, 5, 64]),
    before=st.sampled_from([0, 5, ITEMS - 1]),
    other=st.sampled_from([3, 64]),
    killed=st.booleans(),
)
def test_sids_are_equal_whatever_the_order_the_batches_and_the_cache(
    catalogue, reference, order, size, before, other, killed
):
    with tempfile.TemporaryDirectory() as scratch:
        cache = files.join(scratch, "cache")
        done = [interpreted(catalogue, sorted(order[:before]), other, cache)] if before else []
        if killed and done:  # what it has written stays, the others follow
            done += [interpreted(catalogue, order[before:], size, None)]
        else:  # another run, which finds them in the cache
            done = [interpreted(catalogue, order, size, cache)]
        found = pa.concat_tables(done)
        target = files.join(scratch, "items")
        write_in_hash_order(found.to_batches(), target, ITEMS, interpret.items_schema(interpret.Config()))
        items = files.read_table(target)
    for name in ("item_id", "caption", "interests"):
        assert items[name].to_pylist() == reference[0][name].to_pylist()
    for name in ("image_vector", "text_vector"):
        known = [table[name].combine_chunks().drop_null() for table in (items, reference[0])]
        np.testing.assert_array_equal(matrix_of(known[0]), matrix_of(known[1]))
    np.testing.assert_array_equal(sids(items), reference[1])
