"""Fewer collisions before suffixes are given: items that share their codes are spread over the last level's codewords.

Zheng et al., "Adapting Large Language Models by Integrating Collaborative Semantics for Recommendation" (LC-Rec, ICDE
2024), section III-B: balanced assignment by Sinkhorn, for 20 rounds or until no items collide.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import torch

from models.semantic_ids.prefixes import number_rows

EPSILON = 0.003  # for costs in a range of 2
COST_RANGE = 2.0
ITERATIONS = 50
ROUNDS = 20
BLOCK_ROWS = 2_048  # distances of about this many rows are held at a time


def reassign_last_level(
    codes: np.ndarray, distances: Callable[[np.ndarray], torch.Tensor], order: np.ndarray
) -> np.ndarray:
    """Moves items that share all their codes to codewords of the last level that no other item under their prefix has.

    The colliding items of a prefix (their first L - 1 codes) are assigned together, so that their distances stay
    small in sum. Items that are alone stay, and nothing moves to a codeword of theirs. Where several items want one
    codeword, the first of them in `order` gets it, and the others try again without it. Items that find none stay,
    too: after the last round, or where a prefix has more items than the last level has codewords.

    Args:
        codes: integers [N, L].
        distances: rows (int64 [n], of items that share all their codes) to the squared distances of their last
            residuals to the last codebook, float [n, K].
        order: the rows in an order that depends on what they hold, int64 [N], as from
            `storage.hashing.content_order`; it makes the outcome independent of the order of rows.

    Returns:
        Codes [N, L] that differ from `codes` in the last level at most; of the items that share all theirs, each
        did so before.
    """
    codes = codes.copy()
    items = _colliding_and_neighbours(codes, order)
    if items.is_empty():
        return codes
    size = distances(items.filter(~pl.col("alone"))["row"][:1].to_numpy(writable=True)).shape[1]
    held = items.filter("alone")
    movable = (
        items.filter(~pl.col("alone"))
        .join(held.group_by("prefix").agg(held=pl.len()), on="prefix", how="left", maintain_order="left")
        .with_columns(place=pl.int_range(pl.len()).over("prefix"))
        .filter(pl.col("place") < size - pl.col("held").fill_null(0))  # no more than can find a codeword
        .with_columns(count=pl.len().over("prefix"))
        .sort("count", "prefix", "place")
        .with_columns(block=pl.int_range(pl.len()).first().over("prefix") // BLOCK_ROWS)
    )
    for block in movable.partition_by("count", "block", maintain_order=True):  # prefixes with equally many items
        prefixes = block.select(pl.col("prefix").unique(maintain_order=True)).with_row_index("group")
        taken = held.join(prefixes, on="prefix", how="inner")
        free = torch.ones(len(prefixes), size, dtype=torch.bool)
        free[taken["group"].to_torch().long(), taken["code"].to_torch().long()] = False
        rows = block["row"].to_numpy(writable=True)
        costs = distances(rows).double().view(len(prefixes), -1, size)
        assigned = _assign(costs, free.to(costs.device)).flatten().cpu().numpy()
        codes[rows, -1] = np.where(assigned < 0, codes[rows, -1], assigned)
    return codes


def _colliding_and_neighbours(codes: np.ndarray, order: np.ndarray) -> pl.DataFrame:
    """Rows (row, prefix, code, alone), in order, of the prefixes under which items collide."""
    ordered = codes[order]
    return (
        pl.DataFrame({"row": order, "prefix": number_rows(ordered[:, :-1]), "code": ordered[:, -1]})
        .with_columns(alone=pl.len().over("prefix", "code") == 1)
        .filter(~pl.col("alone").all().over("prefix"))
    )


def _assign(distances: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
    """Assigns the n items of each of G prefixes to free codewords, one item each, in rounds.

    Args:
        distances: float64 [G, n, K].
        free: bool [G, K], at least n for each prefix.

    Returns:
        Codewords, int64 [G, n]; -1 for what found none in time.
    """
    # in the cheapest assignment of n items each has one of its n nearest free codewords: the others need no column
    near = distances.masked_fill(~free[:, None], torch.inf).topk(distances.shape[1], largest=False).indices
    useful = torch.zeros_like(free).scatter_(1, near.flatten(1), True)
    codewords = useful.byte().argsort(dim=1, descending=True, stable=True)[:, : int(useful.sum(1).max())]
    useful = useful.gather(1, codewords)
    lowest, highest = distances.amin((1, 2), keepdim=True), distances.amax((1, 2), keepdim=True)
    costs = (distances - lowest) / ((highest - lowest) / COST_RANGE).clamp_min(torch.finfo(distances.dtype).tiny)
    costs = costs.gather(2, codewords[:, None].expand(-1, costs.shape[1], -1))

    places = torch.arange(costs.shape[1], device=costs.device).expand(costs.shape[:2])
    pending = torch.ones_like(places, dtype=torch.bool)
    assigned = torch.full_like(places, -1)
    for _ in range(ROUNDS):
        alive = pending.any(1)
        if not alive.any():
            break
        wanted = torch.zeros_like(places)
        wanted[alive] = _plan(costs[alive], pending[alive], useful[alive]).argmax(2)
        first = torch.full_like(codewords, len(places[0]))
        first.scatter_reduce_(1, wanted, torch.where(pending, places, len(places[0])), "amin")
        settled = pending & (first.gather(1, wanted) == places)
        assigned = torch.where(settled, codewords.gather(1, wanted), assigned)
        useful[settled.nonzero()[:, 0], wanted[settled]] = False
        pending &= ~settled
    return assigned


def _plan(costs: torch.Tensor, pending: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
    """Returns the entropic transport plan of pending items to free codewords, one item at most to a codeword.

    Sinkhorn's iterations in the log domain (Cuturi 2013), with an ε that falls from the range of the costs, since few
    iterations at a small one do not converge (Kosowsky and Yuille 1994). A slack row of cost 0 takes the codewords
    that are left over. Without it, as in LC-Rec, few items would have to use up all codewords
    evenly, and an item's share would be largest at what is far from the others, not at what is near to it.

    Args:
        costs: float64 [G, n, K].
        pending: bool [G, n], at least one and at most as many as free codewords.
        free: bool [G, K].

    Returns:
        Its logarithm up to a constant per row, float64 [G, n, K].
    """
    slack = free.sum(1, keepdim=True) - pending.sum(1, keepdim=True)
    rows, columns = torch.cat([pending, slack], 1).double().log(), free.double().log()
    gains = torch.cat([-costs, torch.zeros_like(costs[:, :1])], 1)
    potential = torch.zeros_like(columns)
    for epsilon in np.geomspace(COST_RANGE, EPSILON, ITERATIONS):
        scaling = epsilon * (rows - ((gains + potential[:, None]) / epsilon).logsumexp(2))
        potential = epsilon * (columns - ((gains + scaling[:, :, None]) / epsilon).logsumexp(1))
    return (gains[:, :-1] + potential[:, None]) / EPSILON
