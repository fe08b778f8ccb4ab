"""Compares two ways to score candidates with a ranker: the whole input of every pair, and `Scorer`.

python -m benchmarks.scoring --out FILE [--items 20000] [--rounds 30]

A ranker with the default tables and tower, untrained, scores 200 candidates of every query for users with 20 items of
history; one thread, the ways take turns. Milliseconds are medians per query.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.machine import machine
from models.common.jagged import from_arrays, gather
from models.ranking.ranker import Ranker
from models.ranking.settings import RankerSettings
from operators.columns import list_column, matrix_column
from operators.features.ranker_inputs import ItemFeatures, laid_out
from operators.features.scoring import Scorer

CANDIDATES, HISTORY, BATCHES, WIDTH = 200, 20, (1, 4, 16), 64
TOKENS = {"caption": 8, "interests": 4, "text": 12, "sid": 6}  # of an item, on average
DENSE = ["age", "item_events", "item_rate", "user_events"]


def main() -> None:
    """Measures, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"machine": machine(), "items": options.items, "candidates": CANDIDATES}
    for name, attention in (("bags", False), ("target_attention", True)):
        result[name] = measured(RankerSettings(target_attention=attention), options.items, options.rounds)
    Path(options.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measured(settings: RankerSettings, items: int, rounds: int) -> dict[str, Any]:
    """Returns the seconds that a `Scorer` takes to make, and milliseconds per query by size of the batch."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    config = settings.ranker({"hash": {}, "dense": DENSE, "history": HISTORY}, WIDTH)
    ranker = Ranker(config).eval()
    ranker.embeddings.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in ranker.embeddings.parameters():
            parameter.normal_(std=0.1)
    features = laid_out(*catalogue(items, random), config)
    start = time.perf_counter()
    scorer = Scorer(ranker, features)
    found: dict[str, Any] = {"seconds_to_make": round(time.perf_counter() - start, 3)}
    for queries in BATCHES:
        owner = torch.arange(queries).repeat_interleave(CANDIDATES)
        past = from_arrays(random.integers(0, items, queries * HISTORY), np.arange(queries + 1) * HISTORY)
        user = torch.from_numpy(random.integers(1, 2**62, queries))
        rows = torch.from_numpy(random.integers(0, items, len(owner)))
        pairs: dict[str, Any] = {"rows": rows, "dense": torch.randn(len(owner), len(DENSE))}
        ways = {
            "inputs": partial(by_inputs, ranker, features, user=user, history=past, owner=owner, **pairs),
            "scorer": partial(scorer.logits, user=user, history=past, owner=owner, **pairs),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, call in ways.items():
                start = time.perf_counter()
                call()
                seconds[way].append(time.perf_counter() - start)
        figures = {way: round(1000 * statistics.median(each) / queries, 3) for way, each in seconds.items()}
        ratios = [new / old for old, new in zip(seconds["inputs"], seconds["scorer"], strict=True)]
        found[f"queries_{queries}"] = figures | {"ratio": round(statistics.median(ratios), 3)}
    return found


@torch.inference_mode()
def by_inputs(ranker: Ranker, features: ItemFeatures, *, owner: torch.Tensor, **given: Any) -> torch.Tensor:
    """Logits of pairs by way of the whole input of each."""
    given |= {"user": given["user"][owner], "history": gather(given["history"], owner)}
    return ranker(features.inputs(**given))[0]


def catalogue(items: int, random: np.random.Generator) -> tuple[pa.Table, pa.Table]:
    """Returns made-up features/items and embeddings."""
    ids, columns = pa.array(np.arange(items).astype(str)), {"item": pa.array(random.integers(1, 2**62, items))}
    for name, tokens in TOKENS.items():
        offsets = np.concatenate([[0], random.integers(1, 2 * tokens, items).cumsum()])
        columns[name] = list_column(from_arrays(random.integers(1, 2**62, offsets[-1]), offsets))
    vectors = matrix_column(random.normal(size=(items, WIDTH)).astype(np.float32))
    return pa.table({"item_id": ids, **columns}), pa.table({"item_id": ids, "embedding": vectors})


if __name__ == "__main__":
    main()
