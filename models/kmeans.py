"""K-means over whole sets that fit in memory: k-means++ seeding, Lloyd's iterations."""

from __future__ import annotations

import torch

BLOCK_ROWS = 16_384  # distances of this many rows are held at a time


def nearest(points: torch.Tensor, centroids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest centroid of every point.

    Args:
        points: float [N, D].
        centroids: float [K, D].

    Returns:
        Its index, int64 [N] (the lowest of equals), and the squared distance to it, float [N].
    """
    norms = centroids.square().sum(1)
    found = [(norms - 2 * block @ centroids.T).min(1) for block in points.split(BLOCK_ROWS)]
    distances = torch.cat([part.values for part in found]) + points.square().sum(1)
    return torch.cat([part.indices for part in found]), distances.clamp_min(0)


def kmeans(points: torch.Tensor, k: int, *, generator: torch.Generator, iterations: int = 25) -> torch.Tensor:
    """Cluster points into at most k clusters (Lloyd 1982), seeded by k-means++ (Arthur and Vassilvitskii 2007).

    A cluster that runs empty takes a point drawn by squared distance. With fewer distinct points than k, the surplus
    centroids repeat points.

    Args:
        points: float [N, D], N ≥ 1.
        generator: on the CPU, whatever the device of the points.

    Returns:
        Centroids, float [k, D].
    """
    centroids = _seed(points, k, generator)
    for _ in range(iterations):
        labels, distances = nearest(points, centroids)
        counts = torch.bincount(labels, minlength=k)
        sums = torch.zeros_like(centroids).index_add_(0, labels, points)
        updated = sums / counts.clamp_min(1).unsqueeze(1)
        empty = counts == 0
        updated[empty] = points[draw(distances, int(empty.sum()), generator)]
        if torch.equal(updated, centroids):
            break
        centroids = updated
    return centroids


def draw(weights: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw indices int64 [count] in proportion to weights [N], evenly where all are zero; with replacement."""
    bounds = weights.double().cpu().cumsum(0)
    if bounds[-1] <= 0:
        return torch.randint(len(bounds), (count,), generator=generator).to(weights.device)
    uniform = torch.rand(count, generator=generator, dtype=torch.float64) * bounds[-1]
    return torch.searchsorted(bounds, uniform, right=True).clamp_max(len(bounds) - 1).to(weights.device)


def _seed(points: torch.Tensor, k: int, generator: torch.Generator) -> torch.Tensor:
    chosen = [points[draw(torch.zeros(len(points)), 1, generator)[0]]]
    distances = (points - chosen[0]).square().sum(1)
    while len(chosen) < k:
        chosen.append(points[draw(distances, 1, generator)[0]])
        distances = torch.minimum(distances, (points - chosen[-1]).square().sum(1))
    return torch.stack(chosen)
