from __future__ import annotations

import numpy as np
import torch

from models.recommenders import retriever
from models.recommenders.retriever import Retriever


def brute(embeddings: np.ndarray, popularity: np.ndarray, history: list[int], seen: list[int], k: int) -> list[int]:
    z = (embeddings - embeddings.mean(0)) / embeddings.std(0)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    user = z[history].mean(0) if history else np.zeros(z.shape[1])
    rank = np.argsort(np.argsort(-popularity, kind="stable"), kind="stable")
    scores = z @ (user / max(np.linalg.norm(user), 1e-12)) + 1 - rank / (len(rank) - 1)
    order = [int(i) for i in np.argsort(-scores, kind="stable") if i not in seen][:k]
    return order + [-1] * (k - len(order))


def test_top_equals_brute_force(monkeypatch) -> None:
    monkeypatch.setattr(retriever, "BLOCK", 3)
    random = np.random.default_rng(0)
    embeddings, popularity = random.normal(size=(20, 5)).astype(np.float32), random.random(20)
    histories = [[1, 2], [], [3], [4, 4, 5], list(range(18)), [], [7]]
    seen = [[1, 2, 9], [0], [], [4, 5], list(range(18)), [], [7]]
    rows = [torch.tensor([row for one in lists for row in one]) for lists in (histories, seen)]
    offsets = [torch.tensor(np.cumsum([0, *map(len, lists)])) for lists in (histories, seen)]
    top = Retriever(torch.tensor(embeddings), torch.tensor(popularity)).top(
        rows[0], offsets[0], rows[1], offsets[1], k=4
    )
    assert top.tolist() == [brute(embeddings, popularity, h, s, 4) for h, s in zip(histories, seen, strict=True)]


def test_k_beyond_the_catalogue() -> None:
    index = Retriever(torch.eye(3), torch.tensor([1.0, 3, 2]))
    nobody = torch.zeros(0, dtype=torch.int64)
    zero = torch.zeros(2, dtype=torch.int64)
    assert index.top(nobody, zero, nobody, zero, k=9).tolist() == [[1, 2, 0]]


def test_nobody_asks() -> None:
    index = Retriever(torch.eye(3), torch.tensor([1.0, 3, 2]))
    nothing, start = torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    assert index.top(nothing, start, nothing, start, k=2).shape == (0, 2)
