"""Metrics of recommended lists against the one item that came next, vectorised over NumPy arrays of Q queries."""

from __future__ import annotations

import numpy as np

CUTS = (5, 10, 20)
CUT = 10  # of what is told at one length only


def ranks(items: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Places of each target in its list, int64 [Q], from 1; 0 where it is not in it.

    Args:
        items: rows of the recommended items, best first, int [Q, k]; -1 for none.
        target: row of the item that came next, int [Q].
    """
    hits = items == target[:, None]
    return np.where(hits.any(1), hits.argmax(1) + 1, 0)


def recall(rank: np.ndarray, at: int) -> np.ndarray:
    """1 where the target is among the first `at`, else 0, float64 [Q]: with one target also the hit rate."""
    return ((rank > 0) & (rank <= at)).astype(np.float64)


def ndcg(rank: np.ndarray, at: int) -> np.ndarray:
    """1 / log2(rank + 1) where the target is among the first `at`, else 0, float64 [Q]: with one target the ideal is 1.

    Järvelin and Kekäläinen 2002, doi 10.1145/582415.582418.
    """
    return recall(rank, at) / np.log2(np.maximum(rank, 1) + 1)


def coverage(items: np.ndarray, catalogue: int) -> float:
    """Shares of the items of the catalogue that are in some list."""
    return len(np.unique(items[items >= 0])) / catalogue


def popularity_bias(items: np.ndarray, target: np.ndarray, popularity: np.ndarray) -> float:
    """Tells how popular the recommended items are beside those that were chosen; 1 is neither more nor less.

    The average recommendation popularity (ARP) of Abdollahpouri et al. 2019 (arXiv 1901.07555), the mean over the
    lists of the mean popularity of their items, over the mean popularity of the targets. NaN where no target
    has a training event, or no list an item.

    Args:
        items, target: as of `ranks`.
        popularity: training events of every item, [N].
    """
    known = items >= 0
    lengths = known.sum(1)
    filled = lengths > 0
    chosen = popularity[target].mean() if len(target) else 0.0
    if not filled.any() or not chosen:
        return float("nan")
    totals = np.where(known, popularity[items], 0).sum(1)
    return float((totals[filled] / lengths[filled]).mean() / chosen)


def scorecard(items: np.ndarray, target: np.ndarray, popularity: np.ndarray, cold: np.ndarray) -> dict[str, float]:
    """Returns all of the above, means over queries: recall@5, ndcg@5, …, ndcg@20, coverage@10, popularity_bias@10.

    Also cold_recall@10, recall@10 of the queries whose target is cold, NaN without one; queries and cold_queries count.

    Args:
        items, target: as of `ranks`; at least one query, lists of 20.
        popularity: training events of every item, [N].
        cold: bool [N], the items without a training event of any kind.
    """
    rank, asked_cold = ranks(items, target), cold[target]
    means = {
        f"{name}@{at}": float(metric(rank, at).mean())
        for at in CUTS
        for name, metric in (("recall", recall), ("ndcg", ndcg))
    }
    return {
        **means,
        f"coverage@{CUT}": coverage(items[:, :CUT], len(popularity)),
        f"popularity_bias@{CUT}": popularity_bias(items[:, :CUT], target, popularity),
        f"cold_recall@{CUT}": float(recall(rank[asked_cold], CUT).mean()) if asked_cold.any() else float("nan"),
        "queries": len(target),
        "cold_queries": int(asked_cold.sum()),
    }
