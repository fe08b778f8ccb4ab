"""Exact nearest neighbours by cosine, and how many of them semantic IDs still find."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional

from models.common.recommender import best
from models.semantic_ids.prefixes import number_prefixes

NEIGHBOURS = 10
BLOCK_SCORES = 1 << 24  # scores of queries against candidates that are held at a time
BLOCK_ROWS = 16_384  # codes decoded at a time


def nearest_neighbours(
    queries: torch.Tensor, candidates: torch.Tensor, k: int, *, exclude: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns the k candidates of the highest cosine with every query, best first, the lowest index first among equals.

    Holds one normalised copy of the candidates.

    Args:
        queries: float [Q, D].
        candidates: float [N, D].
        k: at most N, or N - 1 with `exclude`.
        exclude: int64 [Q], the candidate that each query may not find: itself.

    Returns:
        Indices of candidates, int64 [Q, k].
    """
    units, found = functional.normalize(candidates, dim=1), []
    for block in _blocks(len(queries), len(candidates)):
        scores = functional.normalize(queries[block], dim=1) @ units.T
        if exclude is not None:
            scores.scatter_(1, exclude[block].unsqueeze(1), -torch.inf)
        found.append(best(scores, k=k).items)
    return torch.cat(found) if found else queries.new_empty((0, k), dtype=torch.int64)


def neighbour_overlap(
    vectors: torch.Tensor,
    codes: torch.Tensor,
    decode: Callable[[torch.Tensor], torch.Tensor],
    rows: torch.Tensor,
    *,
    k: int = NEIGHBOURS,
) -> dict[str, float]:
    """Shares of the true k nearest neighbours, by cosine among the vectors, that codes alone find.

    Rankings by codes have many ties, between which nothing chooses: what is given is the mean over all their orders,
    not the luck of one. At random the share is k / (N - 1).

    Args:
        vectors: float [N, D], in the space where neighbours count.
        codes: integers [N, L], without the deduplication suffix.
        decode: codes [G, L] to vectors [G, D] of that space.
        rows: int64 [Q], the items whose neighbours are looked for, each among all N.

    Returns:
        `prefix`, where the others are ranked by the number of first codes that they share with the query, and
        `decoded`, by the cosine of what the codes decode to. NaN where no item has a neighbour.
    """
    k = min(k, len(vectors) - 1)
    if k < 1 or not len(rows):
        return {"prefix": math.nan, "decoded": math.nan}
    truth = nearest_neighbours(vectors[rows], vectors, k, exclude=rows)
    groups = torch.stack(number_prefixes(codes)[1:])  # [L, N]
    return {
        "prefix": float(_prefix_overlap(groups, rows, truth).mean()),
        "decoded": float(_decoded_overlap(codes, groups[-1], decode, rows, truth).mean()),
    }


def _prefix_overlap(groups: torch.Tensor, rows: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Expected share of the true neighbours, int64 [Q, k], among the k items of the longest shared prefix; float [Q].

    Of n items that tie for the last r places each gets one with probability r / n (the mean of the hypergeometric
    distribution). How many others share h codes with the query or more is the size of its group, less itself.
    """
    others = [torch.full_like(rows, groups.shape[1] - 1)]
    others += [torch.bincount(level)[level[rows]] - 1 for level in groups]
    at_least = torch.stack([*others, torch.zeros_like(rows)], dim=1)  # [Q, L + 2]: by shared codes; none shares L + 1
    shared = (groups[:, rows].unsqueeze(2) == groups[:, truth]).sum(0)
    above = at_least.gather(1, shared + 1)
    return ((truth.shape[1] - above) / (at_least.gather(1, shared) - above)).clamp(0, 1).mean(1)


def _decoded_overlap(
    codes: torch.Tensor,
    group: torch.Tensor,
    decode: Callable[[torch.Tensor], torch.Tensor],
    rows: torch.Tensor,
    truth: torch.Tensor,
) -> torch.Tensor:
    """Returns the same among the k items of the highest cosine between what codes decode to.

    Items of one code tie, so that all is done for distinct codes, each as often as it has items.
    """
    size, k = torch.bincount(group), truth.shape[1]
    first = torch.empty_like(size)
    first[group] = torch.arange(len(group), device=group.device)  # any item of a group shows its code
    words = functional.normalize(torch.cat([decode(block) for block in codes[first].split(BLOCK_ROWS)]), dim=1)
    shares = []
    for block in _blocks(len(rows), len(words)):
        own = group[rows[block]].unsqueeze(1)
        scores = words[own.squeeze(1)] @ words.T
        top = scores.topk(min(k + 1, len(words)), dim=1)  # one more, as the query's own code may be empty without it
        counts = size[top.indices] - (top.indices == own).long()
        last = top.values.gather(1, (counts.cumsum(1) >= k).int().argmax(1, keepdim=True))
        places = k - (counts * (top.values > last)).sum(1, keepdim=True)
        row, word = (scores == last).nonzero(as_tuple=True)
        tied = (
            torch.zeros_like(own).index_add_(0, row, size[word].unsqueeze(1)) - (scores.gather(1, own) == last).long()
        )
        true = scores.gather(1, group[truth[block]])
        shares.append(((true > last) + (true == last) * (places / tied)).mean(1))
    return torch.cat(shares)


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    size = max(1, BLOCK_SCORES // columns)
    return (slice(start, start + size) for start in range(0, rows, size))
