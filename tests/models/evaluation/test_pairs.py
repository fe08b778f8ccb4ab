import numpy as np

from models.evaluation.pairs import ahead


def test_counts_other_columns_that_are_more_similar_and_half_of_equal_ones():
    similarity = np.array([[0.5, 0.9, 0.5], [0.1, 0.3, 0.2], [0.7, 0.7, 0.7]])

    assert ahead(similarity).tolist() == [1.5, 0, 1]


def test_what_is_the_same_but_for_rounding_is_a_tie():
    assert ahead(np.array([[0.5, 0.5 + 1e-8], [0.5 - 1e-8, 0.5]], np.float32)).tolist() == [0.5, 0.5]


def test_random_similarities_put_half_of_the_columns_ahead():
    found = ahead(np.random.default_rng(0).normal(size=(400, 400)))

    assert abs(found.mean() / 399 - 0.5) < 0.05
