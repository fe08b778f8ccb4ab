"""What to know of a set of semantic IDs before anything is trained on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from models.quantizer import Quantizer


def usage(codes: np.ndarray, sizes: tuple[int, ...]) -> dict[str, list[float]]:
    """How much of each codebook is used.

    Args:
        codes: integers [N, L], without the deduplication digit.
        sizes: codewords per level.

    Returns:
        Per level: `usage`, the share of codewords that items have; `dead_codes`, how many none has; `perplexity`,
        exp of the entropy of the codes, at most the codebook's size. Per depth h: `prefix_entropy`, the entropy in
        bits of the first h codes, at most log2 N.
    """
    counts = [np.bincount(level, minlength=size) for level, size in zip(codes.T, sizes, strict=True)]
    prefixes = [np.unique(codes[:, :depth], axis=0, return_counts=True)[1] for depth in range(1, len(sizes) + 1)]
    return {
        "usage": [float((level > 0).mean()) for level in counts],
        "dead_codes": [int((level == 0).sum()) for level in counts],
        "perplexity": [float(np.exp(_entropy(level))) for level in counts],
        "prefix_entropy": [float(_entropy(level) / np.log(2)) for level in prefixes],
    }


def collisions(codes: np.ndarray) -> dict[str, float]:
    """Items that share their whole code with another.

    Args:
        codes: integers [N, L], with or without the deduplication digit.

    Returns:
        `share` of such items and the size of the `largest` group (1 where every item is alone).
    """
    groups = np.unique(codes, axis=0, return_counts=True)[1]
    return {"share": float(groups[groups > 1].sum() / len(codes)), "largest": int(groups.max())}


def reconstruction(quantizer: Quantizer, embeddings: torch.Tensor, codes: torch.Tensor) -> dict[str, list[float]]:
    """What the first h levels keep of the embeddings, for h = 1 … L, both sides standardised.

    Args:
        embeddings: float [N, D].
        codes: their codes, int [N, L].

    Returns:
        Per depth: `reconstruction_cosine`, the mean of cos(x, x̂), and `reconstruction_mse`, mean over rows and
        dimensions, which is the share of variance that is lost.
    """
    inputs = quantizer.standardise(embeddings)
    decoded = [quantizer.standardise(quantizer.decode(codes[:, :depth])) for depth in range(1, codes.shape[1] + 1)]
    return {
        "reconstruction_cosine": [float(torch.cosine_similarity(inputs, output).mean()) for output in decoded],
        "reconstruction_mse": [float((inputs - output).square().mean()) for output in decoded],
    }


def scorecard(quantizer: Quantizer, embeddings: torch.Tensor, codes: np.ndarray, digits: np.ndarray) -> dict[str, Any]:
    """All of the above for a catalogue.

    Args:
        embeddings: float [N, D].
        codes: integers [N, L], without the deduplication digit.
        digits: integers [N].
    """
    before, after = collisions(codes), collisions(np.column_stack([codes, digits]))
    return {
        **usage(codes, quantizer.architecture.codebook_sizes),
        "collision_share": before["share"],
        "collision_share_after": after["share"],
        "largest_collision": before["largest"],
        **reconstruction(quantizer, embeddings, torch.from_numpy(codes)),
    }


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
