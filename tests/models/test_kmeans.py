from __future__ import annotations

import numpy as np
import torch

from models.kmeans import BLOCK_ROWS, draw, kmeans, nearest


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nearest_equals_brute_force_across_blocks() -> None:
    points, centroids = (
        torch.randn(BLOCK_ROWS + 7, 3, generator=generator()),
        torch.randn(11, 3, generator=generator(1)),
    )
    labels, distances = nearest(points, centroids)
    table = (points[:, None] - centroids).square().sum(2)
    assert torch.equal(labels, table.argmin(1))
    assert torch.allclose(distances, table.min(1).values, atol=1e-4)


def test_finds_separated_clusters_whatever_the_seed() -> None:
    centres = 10 * torch.eye(6)
    points = (centres[:, None] + 0.1 * torch.randn(6, 50, 6, generator=generator())).reshape(-1, 6)
    for seed in range(5):
        found = kmeans(points, 6, generator=generator(seed))
        _, distances = nearest(centres, found)
        assert float(distances.max()) < 0.1


def test_ends_where_every_centroid_is_the_mean_of_its_points() -> None:
    points = torch.randn(200, 2, generator=generator())
    centroids = kmeans(points, 5, generator=generator(), iterations=200)
    labels, _ = nearest(points, centroids)
    for k in range(5):
        assert torch.allclose(points[labels == k].mean(0), centroids[k], atol=1e-5)


def test_more_clusters_than_points_repeats_points() -> None:
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    centroids = kmeans(points, 5, generator=generator())
    assert centroids.shape == (5, 2)
    assert float(nearest(points, centroids)[1].max()) == 0.0


def test_draws_follow_the_weights_and_never_take_weight_zero() -> None:
    drawn = draw(torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0]), 4_000, generator()).numpy()
    counts = np.bincount(drawn, minlength=5)
    assert counts[[0, 2, 4]].sum() == 0
    assert abs(counts[3] / 4_000 - 0.75) < 0.03
    assert set(draw(torch.zeros(3), 100, generator()).tolist()) == {0, 1, 2}
