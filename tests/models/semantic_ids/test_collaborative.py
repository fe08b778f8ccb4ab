from __future__ import annotations

import numpy as np
import pytest

from models.semantic_ids.collaborative import STRENGTHS, impute, item_vectors


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


def linear(seed: int, *, noise: float, items: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [items, 5] that are a linear function of the content [items, 12], but for noise."""
    random = np.random.default_rng(seed)
    content = random.normal(size=(items, 12)).astype(np.float32) + 3
    vectors = content @ random.normal(size=(12, 5)) - 7 + noise * random.normal(size=(items, 5))
    return vectors.astype(np.float32), content


@pytest.mark.parametrize(("noise", "most"), [(0.0, 1e-3), (1.0, 0.5)])
def test_imputed_vectors_are_nearer_to_the_true_ones_than_zeros_or_the_mean(noise: float, most: float) -> None:
    vectors, content = linear(0, noise=noise)
    cold = np.arange(len(vectors)) % 4 == 0
    given = np.where(cold[:, None], np.float32(np.nan), vectors)
    found = impute(given, content)
    assert found.dtype == np.float32
    assert np.array_equal(found, impute(given, content))
    for mean in (0.0, vectors[~cold].mean(0)):
        assert np.square(found - vectors)[cold].mean() < most * np.square(mean - vectors)[cold].mean()


def test_what_is_imputed_of_known_items_is_learned_from_the_others() -> None:
    """By the strength that is best so, each item left out in turn and the regression solved anew."""
    vectors, content = linear(1, noise=2.0, items=30)

    def told(strength: float, at: int, kept: np.ndarray) -> np.ndarray:
        inputs, right = content[kept] - content[kept].mean(0), vectors[kept] - vectors[kept].mean(0)
        weights = np.linalg.solve(inputs.T @ inputs + strength * np.eye(12), inputs.T @ right)
        return (content[at] - content[kept].mean(0)) @ weights + vectors[kept].mean(0)

    centred = (content - content.mean(0)).astype(np.float64)
    strengths = STRENGTHS * np.linalg.eigvalsh(centred.T @ centred).mean()
    tried = [[told(each, at, np.arange(30) != at) for at in range(30)] for each in strengths]
    wanted = min(tried, key=lambda rows: np.square(rows - vectors).mean())
    np.testing.assert_allclose(impute(vectors, content), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("known", [1, 2, 5])
def test_few_known_vectors_and_contents_that_do_not_differ_give_numbers(known: int) -> None:
    vectors, content = linear(2, noise=1.0)
    given = np.where(np.arange(len(vectors))[:, None] < known, vectors, np.float32(np.nan))
    assert np.isfinite(impute(given, content)).all()
    alike = impute(given, np.ones_like(content))
    np.testing.assert_allclose(alike[known:], np.broadcast_to(vectors[:known].mean(0), (80 - known, 5)), rtol=1e-4)
