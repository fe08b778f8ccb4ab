from __future__ import annotations

import numpy as np
import pytest

from models.embedding.projector import Projector, fit_projector
from storage.errors import UserError


def blocks(rng, rows=300):
    image = rng.normal(3.0, 5.0, (rows, 12)).astype(np.float32)
    text = (rng.normal(0.0, 0.1, (rows, 5)) + image[:, :5] * 0.02).astype(np.float32)
    return [(image, np.ones(rows, bool)), (text, rng.random(rows) < 0.8)]


def test_full_width_keeps_the_distances_of_the_standardised_vectors():
    data = blocks(np.random.default_rng(0))
    data[1] = (data[1][0], np.ones(300, bool))
    projector = fit_projector(lambda: [data], {"image": 1.0, "text": 1.0}, width=17)
    parts = [(v - v.mean(0)) / (v.std(0) * np.sqrt(v.shape[1])) for v, _ in data]
    want, got = np.concatenate(parts, 1), projector.transform(data)
    ratio = np.linalg.norm(got[:50, None] - got[None, :50], axis=-1)[np.triu_indices(50, 1)]
    ratio = ratio / np.linalg.norm(want[:50, None] - want[None, :50], axis=-1)[np.triu_indices(50, 1)]
    assert ratio.std() / ratio.mean() < 1e-4
    assert projector.explained == pytest.approx(1.0)


def test_batches_do_not_matter():
    data = blocks(np.random.default_rng(1))
    whole = fit_projector(lambda: [data], {"image": 1.0, "text": 2.0}, width=4)
    cut = [[(v[s : s + 70], k[s : s + 70]) for v, k in data] for s in range(0, 300, 70)]
    parts = fit_projector(lambda: cut, {"image": 1.0, "text": 2.0}, width=4)
    np.testing.assert_allclose(whole.transform(data), parts.transform(data), atol=1e-4)


def test_a_missing_part_counts_as_the_mean():
    data = blocks(np.random.default_rng(2))
    projector = fit_projector(lambda: [data], {"image": 1.0, "text": 1.0}, width=6)
    image, known = data[0]
    means = np.broadcast_to(projector.means[1], (300, 5)).astype(np.float32)
    absent = projector.transform([(image, known), (data[1][0], np.zeros(300, bool))])
    np.testing.assert_allclose(absent, projector.transform([(image, known), (means, known)]), atol=1e-5)


def test_a_weight_of_zero_silences_a_block_and_all_zero_is_refused():
    data = blocks(np.random.default_rng(3))
    projector = fit_projector(lambda: [data], {"image": 1.0, "text": 0.0}, width=6)
    other = [(data[0][0], data[0][1]), (data[1][0] + 100, data[1][1])]
    np.testing.assert_allclose(projector.transform(data), projector.transform(other), atol=1e-5)
    with pytest.raises(UserError, match="weights"):
        fit_projector(lambda: [data], {"image": 0.0, "text": 0.0}, width=6)


def test_a_constant_dimension_does_no_harm():
    data = blocks(np.random.default_rng(4))
    data[0][0][:, 3] = 7.0
    projector = fit_projector(lambda: [data], {"image": 1.0, "text": 1.0}, width=6)
    assert np.isfinite(projector.transform(data)).all()


def test_the_artifact_projects_as_before(tmp_path):
    data = blocks(np.random.default_rng(5))
    projector = fit_projector(lambda: [data], {"image": 1.0, "text": 1.0}, width=6)
    projector.save(str(tmp_path))
    loaded = Projector.load(str(tmp_path))
    assert np.array_equal(loaded.transform(data), projector.transform(data))
    assert (loaded.names, loaded.explained) == (projector.names, projector.explained)


def test_a_row_is_projected_alike_alone_and_among_others():
    data = blocks(np.random.default_rng(5))
    projector = fit_projector(lambda: [data], {"image": 1.0, "text": 1.0}, width=6)
    alone = [projector.transform([(v[row : row + 1], k[row : row + 1]) for v, k in data]) for row in range(300)]
    np.testing.assert_array_equal(projector.transform(data), np.concatenate(alone))
