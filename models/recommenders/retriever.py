"""Candidate retrieval: items near the mean of a user's last items, the popular ones before the others."""

from __future__ import annotations

import torch
from torch.nn import functional

BLOCK = 2048  # users per matrix product
# What the most popular item has over the least popular one, in units of cosine. Content alone finds fewer of the next
# items than popularity does, and the two together more than either (benchmarks/RESULTS.md).
POPULARITY_WEIGHT = 1.0


def normalise(embeddings: torch.Tensor) -> torch.Tensor:
    """Standardise every dimension over the catalogue, then scale every item to unit length; float32 [N, D]."""
    centred = embeddings - embeddings.mean(0)
    return functional.normalize(centred / centred.std(0, correction=0).clamp_min(1e-6), dim=1)


class Retriever:
    """Top-K items for users given by their histories."""

    def __init__(self, embeddings: torch.Tensor, popularity: torch.Tensor) -> None:
        """Index a catalogue.

        Args:
            embeddings: float32 [N, D].
            popularity: float [N], higher first; its ranks count, and alone make the order for users without a history.
        """
        self.vectors = normalise(embeddings)
        order = popularity.argsort(descending=True, stable=True)
        self.popular = torch.empty(len(order))
        self.popular[order] = torch.linspace(POPULARITY_WEIGHT, 0, len(order))

    def top(
        self, history: torch.Tensor, offsets: torch.Tensor, seen: torch.Tensor, seen_offsets: torch.Tensor, *, k: int
    ) -> torch.Tensor:
        """The k best items of every user, best first, without the items seen.

        Args:
            history: int64 item rows of all users one after the other; offsets int64 [B+1].
            seen: the same for the items to leave out.

        Returns:
            int64 [B, min(k, N)]; -1 where fewer than k items are left.
        """
        if len(offsets) == 1:
            return torch.empty(0, min(k, len(self.vectors)), dtype=torch.int64)
        users = functional.normalize(functional.embedding_bag(history, self.vectors, offsets[:-1], mode="mean"))
        best = []
        for block in torch.arange(len(users)).split(BLOCK):
            scores = users[block] @ self.vectors.T + self.popular  # a user without a history is the zero vector
            first, end = seen_offsets[block[0]], seen_offsets[block[-1] + 1]
            row = torch.repeat_interleave(block - block[0], seen_offsets.diff()[block])
            scores[row, seen[first:end]] = -torch.inf
            top = scores.topk(min(k, scores.shape[1]), dim=1)
            best.append(top.indices.masked_fill(top.values == -torch.inf, -1))
        return torch.cat(best)
