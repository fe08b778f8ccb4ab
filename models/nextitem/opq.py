"""Optimised product quantisation: many short, unordered codes per item."""

from __future__ import annotations

import faiss
import numpy as np
import torch

ROUNDS = 8  # of rotation and k-means by turns; the error hardly falls after them


def product_codes(vectors: np.ndarray, *, digits: int, codewords: int, seed: int) -> torch.Tensor:
    """Rotate, cut into `digits` parts, and quantise each part by k-means of its own (Ge et al., CVPR 2013).

    Args:
        vectors: float32 [N, D], N at least `codewords`.
        digits: M, number of parts.
        codewords: C, of each part.
        seed: of every draw.

    Returns:
        int64 [N, M], codes below C.
    """
    width = -(-vectors.shape[1] // digits) * digits  # zeros fill the last part up
    wide = np.zeros((len(vectors), width), np.float32)
    wide[:, : vectors.shape[1]] = vectors
    quantizer = faiss.ProductQuantizer(width, digits, int(codewords).bit_length() - 1)
    quantizer.cp.seed = seed
    rotation = faiss.OPQMatrix(width, digits)
    rotation.niter = ROUNDS
    rotation.pq = quantizer
    rotation.train(wide)
    rotated = rotation.apply(wide)
    quantizer.train(rotated)
    return torch.from_numpy(quantizer.compute_codes(rotated).astype(np.int64))
