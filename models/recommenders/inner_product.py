"""Approximate search for the items of the largest inner product, for catalogues too large to score as a whole."""

from __future__ import annotations

import faiss
import torch

from models.common.jagged import Jagged
from models.common.recommender import Recommended, best, without

LINKS = 32  # of an item in the graph
BUILD_WIDTH, SEARCH_WIDTH = 200, 256  # candidates that a walk keeps, at least


class InnerProductIndex:
    """Searches a graph of items (HNSW; Malkov & Yashunin, TPAMI 2020, arXiv 1603.09320) by faiss."""

    def __init__(self, vectors: torch.Tensor) -> None:
        """Indexes items by their vectors, float32 [N, D]."""
        faiss.omp_set_num_threads(torch.get_num_threads())
        self._index = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = BUILD_WIDTH
        self._index.add(vectors.detach().cpu().contiguous().numpy())

    def search(
        self, queries: torch.Tensor, *, k: int, banned: Jagged | None = None, allowed: torch.Tensor | None = None
    ) -> Recommended:
        """Returns most of the k best items for vectors float32 [B, D]; no list is proved to be exact.

        Args:
            queries: on the CPU, as all arguments.
            k: and banned, allowed: see `models.common.recommender.Recommender`. The search looks for as many more
                items as the user with the most banned ones must not get.
        """
        more = int(banned.offsets.diff().max()) if banned is not None and len(queries) else 0
        count = min(k + more, self._index.ntotal)
        selector = None if allowed is None else faiss.IDSelectorBatch(allowed.nonzero()[:, 0].numpy())
        parameters = faiss.SearchParametersHNSW(  # type: ignore[attr-defined] # the stubs lack it
            efSearch=max(SEARCH_WIDTH, 2 * count), sel=selector
        )
        products, items = map(
            torch.from_numpy, self._index.search(queries.contiguous().numpy(), count, params=parameters)
        )
        items, order = items.sort(dim=1, stable=True)  # of equal scores the lower row comes first
        products = products.gather(1, order).masked_fill(items < 0, -torch.inf)
        found = best(products, k=k + more)
        rows = items.gather(1, found.items.clamp_min(0)).masked_fill(found.items < 0, -1)
        lists = Recommended(rows, found.scores, torch.zeros(len(queries), dtype=torch.bool))
        return lists if banned is None else without(lists, banned, k=k)
