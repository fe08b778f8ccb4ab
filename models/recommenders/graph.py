"""The best items by parallel semantic IDs: of all items, or by a walk over a graph where those are too many.

An item is M unordered digits of C codes each, and a user's score of it is the sum of its digits' log-probabilities (Hou
et al., "Generating Long Semantic IDs in Parallel for Recommendation", KDD 2025, arXiv 2506.05781).
"""

from __future__ import annotations

from typing import NamedTuple

import faiss
import numpy as np
import torch
from torch.nn import functional

from models.common.jagged import Jagged, gather
from models.common.recommender import Recommended, best
from models.common.seeds import generator

USERS = 64  # scored side by side: the log-probabilities of more would leave the cache
BLOCK_VALUES = 1 << 26  # marks of users and items, or components of vectors, that are held at a time
CELL = 256  # items in a list of the inverted index, on average
PROBES = 32  # lists that an item's neighbours are looked for in


class Found(NamedTuple):
    """What a search found, and what it took."""

    best: Recommended
    scored: torch.Tensor  # int64 [B], items that were scored


@torch.no_grad()
def exact(logp: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Scores of all items, float32 [B, N].

    Sums over rows of a table that has the users side by side: many times as fast as gathers of one number each.

    Args:
        logp: float32 [B, M, C], log-probabilities of every digit's codes.
        codes: integers [N, M], the items.
    """
    rows, scores = _rows(codes, logp.shape[2]), logp.new_empty(len(logp), len(codes))
    for part, out in zip(logp.split(USERS), scores.split(USERS), strict=True):
        table = part.flatten(1).T.contiguous()
        out.copy_(functional.embedding_bag(rows, table, mode="sum").T)
    return scores


def build_graph(codes: torch.Tensor, codewords: torch.Tensor, degree: int) -> torch.Tensor:
    """The most alike items of every item, best first.

    How alike two items are is the sum over their digits of the cosine of their codewords, as in the paper. Neighbours
    are looked for in the nearest lists of an inverted index (Jégou et al., "Product quantization for nearest neighbor
    search", TPAMI 2011): among all of up to CELL × PROBES items, which finds nearly all of the nearest among more.

    Args:
        codes: integers [N, M].
        codewords: float32 [M, C, d], embeddings of the digits' codes.
        degree: neighbours of an item, at most.

    Returns:
        int32 [N, min(degree, N - 1)]; -1 where fewer were found.
    """
    count, (digits, size, dim) = len(codes), codewords.shape
    units = functional.normalize(codewords.float(), dim=2)
    rows, table = _rows(codes, size), units.flatten(0, 1)
    blocks = torch.arange(count).split(max(1, BLOCK_VALUES // (digits * dim)))

    def vectors(items: torch.Tensor) -> np.ndarray:
        return functional.embedding(rows[items], table).flatten(1).numpy()

    faiss.omp_set_num_threads(torch.get_num_threads())
    sample = torch.randperm(count, generator=generator(0))[: len(blocks[0])]
    means = faiss.Kmeans(
        digits * dim, min(-(-count // CELL), len(sample)), niter=8, spherical=True, min_points_per_centroid=1
    )
    means.train(vectors(sample))
    # With the codewords as its product quantizer the index keeps nothing but codes, and sums M entries of a table for
    # how alike two items are.
    bits = max(1, (size - 1).bit_length())
    index = faiss.IndexIVFPQ(means.index, digits * dim, means.k, digits, bits, faiss.METRIC_INNER_PRODUCT)
    words = functional.pad(units, (0, 0, 0, 2**bits - size))
    faiss.copy_array_to_vector(words.numpy().reshape(-1), index.pq.centroids)
    index.by_residual, index.is_trained, index.nprobe = False, True, PROBES
    for items in blocks:
        index.add(vectors(items))
    width, found = min(degree, count - 1), []
    for items in blocks:
        near = torch.from_numpy(index.search(vectors(items), width + 1)[1])
        own = (near == items.unsqueeze(1)).byte()  # not always the first: another item may have the same codes
        found.append(near.gather(1, own.argsort(dim=1, stable=True)[:, :width]).int())
    return torch.cat(found)


def search(
    logp: torch.Tensor,
    codes: torch.Tensor,
    graph: torch.Tensor,
    *,
    k: int,
    beams: int = 16,
    steps: int = 8,
    starts: int = 8192,
    seed: int = 0,
    banned: Jagged | None = None,
    allowed: torch.Tensor | None = None,
) -> Found:
    """The k best items that a walk over the graph comes by; most of the best by `exact`, scoring few items.

    All users start from the same random items, so that nobody's list depends on who else asks, and so that these are
    scored as `exact` does: the paper starts each user from a few of their own, from where a graph of separate clusters
    leads nowhere. At each step the neighbours of the best `beams` items that were not left yet are scored. Items that a
    user must not get are walked through, and left out of what was found.

    Args:
        logp: float32 [B, M, C], log-probabilities of every digit's codes.
        codes: integers [N, M], the items.
        graph: int32 [N, degree], as `build_graph` makes it.
        k: and banned, allowed: see `models.common.recommender.Recommender`.
        steps: after the start, in each of which beams × degree items are scored at most.
        starts: random items that are scored first; `seed`: of their choice.
    """
    found = []
    start = torch.randperm(len(codes), generator=generator(seed))[:starts].sort().values
    for users in torch.arange(len(logp)).split(min(USERS, max(1, BLOCK_VALUES // len(codes)))):
        barred = torch.zeros(len(users), len(codes), dtype=torch.bool)
        if allowed is not None:
            barred |= ~allowed
        if banned is not None:
            out = gather(banned, users)
            barred[torch.repeat_interleave(torch.arange(len(users)), out.offsets.diff()), out.values] = True
        found.append(_walk(logp[users], codes, graph, start, barred, k=k, beams=beams, steps=steps))
    lists, scored = zip(*found, strict=True)
    return Found(Recommended(*map(torch.cat, zip(*lists, strict=True))), torch.cat(scored))


def _walk(
    logp: torch.Tensor,
    codes: torch.Tensor,
    graph: torch.Tensor,
    start: torch.Tensor,
    barred: torch.Tensor,
    *,
    k: int,
    beams: int,
    steps: int,
) -> Found:
    """The search of some users; barred, bool [B, N], are the items that they must not get."""
    count, digits, size = logp.shape
    items, scores = start.expand(count, -1), exact(logp, codes[start])
    visited = torch.zeros_like(barred)
    visited[:, start] = True
    ahead_items, ahead_scores = items, scores  # scored, and not left yet
    good_items, good_scores = _best(items, scores, barred, k)
    for left in range(steps, 0, -1):
        # what is not among the best for all steps left will never be left
        ahead_scores, order = ahead_scores.topk(min(beams * left, ahead_scores.shape[1]), dim=1)
        ahead_items = ahead_items.gather(1, order)
        corner, ahead_items, ahead_scores = ahead_items[:, :beams], ahead_items[:, beams:], ahead_scores[:, beams:]
        near = graph[corner].long()
        items = torch.where(near < 0, corner.unsqueeze(2), near).flatten(1).sort(dim=1).values
        fresh = ~visited.gather(1, items)
        fresh[:, 1:] &= items[:, 1:] != items[:, :-1]
        user, new = fresh.nonzero(as_tuple=True)[0], items[fresh]
        visited[user, new] = True
        at = _rows(codes[new], size) + (user * digits * size).int().unsqueeze(1)
        scores = torch.full(items.shape, -torch.inf)
        scores[fresh] = logp.flatten().index_select(0, at.flatten()).view(-1, digits).sum(1)
        ahead_items, ahead_scores = torch.cat([ahead_items, items], 1), torch.cat([ahead_scores, scores], 1)
        new_items, new_scores = _best(items, scores, barred, k)
        good_items, good_scores = torch.cat([good_items, new_items], 1), torch.cat([good_scores, new_scores], 1)
    order = good_items.argsort(dim=1)  # so that of equals the lower row comes first
    found = best(good_scores.gather(1, order), k=k)
    items = good_items.gather(1, order).gather(1, found.items.clamp_min(0)).masked_fill(found.items < 0, -1)
    return Found(Recommended(items, found.scores), visited.sum(1))


def _best(items: torch.Tensor, scores: torch.Tensor, barred: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best of some items and their scores, [B, n] each, but for the barred ones."""
    scores, order = scores.masked_fill(barred.gather(1, items), -torch.inf).topk(min(k, items.shape[1]), dim=1)
    return items.gather(1, order), scores


def _rows(codes: torch.Tensor, size: int) -> torch.Tensor:
    """The codes as rows of a table in which the digits' codes follow each other, int32 [N, M]."""
    return codes.int() + torch.arange(codes.shape[1], dtype=torch.int32, device=codes.device) * size
