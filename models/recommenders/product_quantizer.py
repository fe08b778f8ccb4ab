"""Optimised product quantisation: many short, unordered codes per item."""

from __future__ import annotations

from typing import NamedTuple

import faiss
import numpy as np
import torch

ROUNDS = 8  # of rotation and k-means by turns; the error hardly falls after them


class Quantized(NamedTuple):
    """Items as M unordered codes each."""

    codes: torch.Tensor  # int64 [N, M]
    codewords: torch.Tensor  # float32 [M, C, D / M], in the rotated space


def code_rows(codes: torch.Tensor, codewords: int) -> torch.Tensor:
    """Returns the rows of items' codes, int32 [N, M], in a table of `codewords` rows for each code."""
    return (codes + torch.arange(codes.shape[1]) * codewords).int()


def quantize(
    vectors: np.ndarray,
    *,
    dim: int,
    codes: int,
    codewords: int,
    seed: int,
    whiten: bool = False,
    learned: np.ndarray | None = None,
) -> Quantized:
    """Reduces to the main directions, rotate, cut into parts and quantise each by k-means (Ge et al., CVPR 2013).

    Args:
        vectors: float32 [N, W], N at least C.
        dim: D, to which wider vectors are reduced by PCA; narrower ones are filled up with zeros.
        codes: M, number of parts; divides D.
        codewords: C of each part, a power of two.
        seed: of every draw.
        whiten: whether every direction counts alike, but for those in which hardly anything differs.
        learned: float32 [N, W], what directions, rotation and codewords are learned from in the place of `vectors`.
    """
    shown = vectors if learned is None else learned
    mean, axes = shown.mean(0), None
    if whiten or shown.shape[1] > dim:
        centred = shown - mean
        squares, axes = np.linalg.eigh(centred.T @ centred)
        scales = np.sqrt(np.maximum(squares, 1e-6 * squares[-1] + 1e-12) / len(shown)) if whiten else 1.0
        axes = (axes / scales)[:, : -dim - 1 : -1]

    def reduced(rows: np.ndarray) -> np.ndarray:
        centred = rows - mean if axes is None else (rows - mean) @ axes
        wide = np.zeros((len(rows), dim), np.float32)
        wide[:, : centred.shape[1]] = centred
        return wide

    wide = reduced(shown)
    faiss.omp_set_num_threads(torch.get_num_threads())
    quantizer = faiss.ProductQuantizer(dim, codes, codewords.bit_length() - 1)
    quantizer.cp.seed = seed % 2**31  # an int of C
    quantizer.cp.min_points_per_centroid = 1
    rotation = faiss.OPQMatrix(dim, codes)
    rotation.niter = ROUNDS
    rotation.pq = quantizer
    # with fewer rows than dimensions faiss writes past its memory
    rotation.train(np.tile(wide, (-(-dim // len(wide)), 1)))
    rotated = rotation.apply(wide)
    quantizer.train(rotated)
    if learned is not None:
        rotated = rotation.apply(reduced(vectors))
    found = faiss.unpack_bitstrings(quantizer.compute_codes(rotated), codes, quantizer.nbits)
    words = faiss.vector_to_array(quantizer.centroids).reshape(codes, codewords, -1)
    return Quantized(torch.from_numpy(found.astype(np.int64)), torch.from_numpy(words.copy()))
