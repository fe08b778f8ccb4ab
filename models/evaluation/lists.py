"""Metrics of recommended lists against the one item that came next, vectorised over NumPy arrays of Q queries."""

from __future__ import annotations

import numpy as np

CUTS = (5, 10, 20)
CUT = 10  # of what is told at one length only
HEAD = 0.8  # share of the training events that is held by the items of the head; the others are the tail
FAIR = 0.8  # share of the items that count as unpopular


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


def gini(items: np.ndarray, catalogue: int) -> float:
    """Tells how unequally the items of the catalogue are listed: 0 is equally often, near 1 is few items in all lists.

    The mean absolute difference between two items' counts of lists, over twice the mean count (Gini 1912; of
    recommendations Fleder and Hosanagar 2009, doi 10.1287/mnsc.1080.0974). NaN where no list has an item.
    """
    counts = np.sort(np.bincount(items[items >= 0], minlength=catalogue))
    weights = 2 * np.arange(catalogue) + 1 - catalogue  # of the k-th smallest: how many are smaller, less those above
    return float(weights @ counts / (catalogue * counts.sum())) if counts.any() else float("nan")


def fair(items: np.ndarray, popularity: np.ndarray, alpha: float = FAIR) -> float:
    """Returns the share of the recommended items that are unpopular: Fair-alpha of SPRINT, arXiv 2606.21911.

    Unpopular are the items of the catalogue with the fewest training events, alpha N of them, rounded down; of equal
    ones the lower row first. Published for lists of one item. NaN where no list has an item.
    """
    unpopular = np.zeros(len(popularity), bool)
    unpopular[np.argsort(popularity, kind="stable")[: int(alpha * len(popularity))]] = True
    found = items[items >= 0]
    return float(unpopular[found].mean()) if len(found) else float("nan")


def head(popularity: np.ndarray, share: float) -> np.ndarray:
    """Masks the fewest items that hold a share of the events, bool [N], the most popular ones; the rest is the tail."""
    order = np.argsort(-popularity, kind="stable")
    ahead = np.cumsum(popularity[order]) - popularity[order]  # what more popular items hold
    held = np.zeros(len(popularity), bool)
    held[order] = ahead < share * popularity.sum()
    return held


def popularity_bias(items: np.ndarray, target: np.ndarray, popularity: np.ndarray) -> float:
    """Tells how popular the recommended items are beside those that were chosen; 1 is neither more nor less.

    The average recommendation popularity (ARP) of Abdollahpouri et al. 2019 (arXiv 1901.07555), the mean over the
    lists of the mean popularity of their items, over the mean popularity of the targets. That is the same for all
    recommenders, so that ARP itself would order them no differently, but mean nothing on another log. NaN where no
    target has a training event, or no list an item.

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
    """Returns all of the above by name.

    recall@5, ndcg@5, …, ndcg@20, means over queries; coverage@10, gini@10, popularity_bias@10, fair_0.8@1 and
    fair_0.8@10; queries, a count. Of two slices of the queries cold_recall@10, cold_ndcg@10 and cold_queries, tail_…:
    those whose target is cold, and those whose target is not in the head that holds 80 % of the training events, cold
    ones among them. Means of a slice without a query are NaN.

    Args:
        items, target: as of `ranks`; at least one query, lists of 20.
        popularity: training events of every item, [N].
        cold: bool [N], the items without a training event of any kind.
    """
    rank, short, measures = ranks(items, target), items[:, :CUT], {"recall": recall, "ndcg": ndcg}
    card = {f"{name}@{at}": float(metric(rank, at).mean()) for at in CUTS for name, metric in measures.items()}
    card |= {
        f"coverage@{CUT}": coverage(short, len(popularity)),
        f"gini@{CUT}": gini(short, len(popularity)),
        f"popularity_bias@{CUT}": popularity_bias(short, target, popularity),
        **{f"fair_{FAIR}@{at}": fair(items[:, :at], popularity) for at in (1, CUT)},
        "queries": len(target),
    }
    for part, members in (("cold", cold), ("tail", ~head(popularity, HEAD))):
        asked = rank[members[target]]
        for name, metric in measures.items():
            card[f"{part}_{name}@{CUT}"] = float(metric(asked, CUT).mean()) if len(asked) else float("nan")
        card[f"{part}_queries"] = len(asked)
    return card
