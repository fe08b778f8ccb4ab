from __future__ import annotations

import numpy as np

from models.semantic_ids.collaborative import item_vectors


def test_items_of_the_same_users_are_near_and_items_without_events_have_no_vector() -> None:
    random = np.random.default_rng(0)
    users = np.repeat(np.arange(60), 6)
    items = np.where(users < 30, 0, 10) + random.integers(0, 10, len(users))  # two circles of users and of items
    vectors = item_vectors(users, items, 21, width=4, seed=0)
    cosines = vectors[:20] @ vectors[:20].T
    assert cosines[:10, :10].mean() > 0.6
    assert cosines[:10, 10:].mean() < 0.1
    assert np.isnan(vectors[20]).all()
    assert np.allclose(np.linalg.norm(vectors[:20], axis=1), 1, atol=1e-5)


def test_repeated_choices_count_once_and_few_users_give_few_dimensions() -> None:
    users, items = np.array([0, 0, 1]), np.array([0, 1, 1])
    once = item_vectors(users, items, 3, width=64, seed=0)
    assert once.shape == (3, 2)
    assert np.array_equal(
        once, item_vectors(np.append(users, 1), np.append(items, 1), 3, width=64, seed=0), equal_nan=True
    )
