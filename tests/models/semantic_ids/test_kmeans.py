from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.semantic_ids import kmeans as module
from models.semantic_ids.kmeans import BLOCK_ROWS, balance, kmeans, nearest
from tests.models.workers import on_ranks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def keys(rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**64, rows, dtype=np.uint64)


def test_nearest_equals_brute_force_across_blocks_with_and_without_offsets() -> None:
    points = torch.randn(BLOCK_ROWS + 7, 3, generator=generator())
    centroids, offsets = torch.randn(11, 3, generator=generator(1)), torch.rand(11, generator=generator(2))
    table = (points[:, None] - centroids).square().sum(2)
    for added in (None, offsets):
        assert torch.equal(nearest(points, centroids, added), (table if added is None else table + added).argmin(1))


def test_no_points_have_no_neighbours() -> None:
    assert len(nearest(torch.empty(0, 3), torch.zeros(2, 3))) == 0


def error(points: torch.Tensor, centroids: torch.Tensor, offsets: torch.Tensor | None = None) -> torch.Tensor:
    """Squared distances of points to their centroids."""
    return (points - centroids[nearest(points, centroids, offsets)]).square().sum(1)


def test_finds_separated_clusters_whatever_the_seed() -> None:
    centres = 10 * torch.eye(6)
    points = (centres[:, None] + 0.1 * torch.randn(6, 50, 6, generator=generator())).reshape(-1, 6)
    for seed in range(5):
        found = kmeans(points, 6, keys=keys(300), seed=seed)
        assert float(error(centres, found).max()) < 0.1


def test_ends_where_every_centroid_is_the_mean_of_its_points() -> None:
    points = torch.randn(200, 2, generator=generator())
    centroids = kmeans(points, 5, keys=keys(200), seed=0)
    labels = nearest(points, centroids)
    for k in range(5):
        assert torch.allclose(points[labels == k].mean(0), centroids[k], atol=1e-2)


@pytest.mark.parametrize("rows", [1, 3])
def test_more_clusters_than_points_repeats_points(rows: int) -> None:
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])[:rows]
    centroids = kmeans(points, 5, keys=keys(rows), seed=0)
    assert centroids.shape == (5, 2)
    assert float(error(points, centroids).max()) < 1e-5


def test_mini_batches_over_a_large_set_come_close_to_lloyd_on_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    centres = torch.randn(20, 8, generator=generator()) * 3
    points = centres[torch.randint(20, (6_000,), generator=generator(1))]
    points = points + torch.randn(6_000, 8, generator=generator(2))
    whole = float(error(points, kmeans(points, 20, keys=keys(6_000), seed=0)).mean())
    monkeypatch.setattr(module, "SAMPLE_PER_CENTROID", 30)
    small = float(error(points, kmeans(points, 20, keys=keys(6_000), seed=0)).mean())
    assert small < 1.05 * whole


def test_balanced_clusters_have_equal_numbers_at_a_small_price() -> None:
    points = torch.cat([torch.randn(900, 4, generator=generator()), 2 + torch.randn(100, 4, generator=generator(1))])
    centroids = kmeans(points, 10, keys=keys(1_000), seed=0)
    moved, offsets = balance(points, centroids, keys=keys(1_000), seed=0)
    before, after = nearest(points, centroids), nearest(points, moved, offsets)
    sizes = [torch.bincount(labels, minlength=10) for labels in (before, after)]
    assert float(sizes[1].float().std()) < 0.25 * float(sizes[0].float().std())
    assert int(sizes[1].min()) > 80
    assert float(error(points, moved, offsets).mean()) < 1.15 * float(error(points, centroids).mean())
    assert abs(float(offsets.mean())) < 1e-5


def test_a_dense_middle_with_few_outliers_is_balanced_too() -> None:
    points = torch.cat([0.3 * torch.randn(1_900, 24, generator=generator()), 3 * torch.randn(100, 24)])
    centroids, offsets = balance(points, kmeans(points, 16, keys=keys(2_000), seed=0), keys=keys(2_000), seed=0)
    sizes = torch.bincount(nearest(points, centroids, offsets), minlength=16)
    assert int(sizes.max()) < 250  # of 125: none swallows the middle
    assert int((sizes == 0).sum()) <= 1  # an outlier's own may stay empty


def share(rank: int, points: torch.Tensor, bounds: list[int]) -> tuple[torch.Tensor, ...]:
    rows = slice(bounds[rank], bounds[rank + 1])
    module.SAMPLE_PER_CENTROID = 20
    centroids = kmeans(points[rows], 6, keys=keys(len(points))[rows], seed=0)
    return centroids, *balance(points[rows], centroids, keys=keys(len(points))[rows], seed=0)


def test_two_workers_find_what_one_finds_however_the_rows_are_shared(tmp_path: Path) -> None:
    points = torch.randn(500, 5, generator=generator())
    kept, module.SAMPLE_PER_CENTROID = module.SAMPLE_PER_CENTROID, 20
    try:
        alone = share(0, points, [0, 500])
    finally:
        module.SAMPLE_PER_CENTROID = kept
    for first, second in on_ranks(share, tmp_path, [(points, [0, 250, 500]), (points, [0, 500, 500])]):
        for one, two, expected in zip(first, second, alone, strict=True):
            assert torch.equal(one, two)
            assert torch.allclose(one, expected, atol=1e-5)
