"""Measures how the service's time grows with the catalogue: the same requests to runs of few and of many items.

python -m benchmarks.serve_sizes DIR [--items 3631 100000] [--events 400000] [--rounds 5] [--queries 200] [--out FILE]

Writes into DIR a generated catalogue with given embeddings of each size and a run of it; what is there already is not
made again. Product codes are fitted for a few steps and the ranker for one epoch: what they know does not matter here.
Each run is served by itself, all at once, with the requests of `benchmarks.serve` (histories of 20 items, ten asked
for, 200 candidates of content and product codes, ranked), which go to the services in turns.

    p50_ms   median over the rounds of the median of a round, for each size
    ratio    of the largest catalogue to the smallest
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.machine import machine
from benchmarks.scale import STAGES, write_catalog
from benchmarks.serve import PORT, body, draw, latencies, p50, server
from serving.pipeline import Pipeline
from serving.settings import Settings
from serving.stores.opening import open_store
from storage.run import RunDir

FIT = {"steps": 50, "validate_every": 50, "valid_queries": 100}
GENERATE = {"sasrec": {"fit": FIT}, "product_codes": {"fit": FIT}, "item_knn": None, "language_model": None}


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--items", type=int, nargs="+", default=[3_631, 100_000])
    parser.add_argument("--events", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=200, help="of a round")
    parser.add_argument("--out", type=Path, help="file for the JSON object, beside stdout")
    arguments = parser.parse_args()
    runs = {items: made(arguments.directory, items, arguments.events) for items in sorted(arguments.items)}
    torch.set_num_threads(1)
    result = {**machine(), "events": arguments.events, "rounds": arguments.rounds, "queries": arguments.queries}
    result |= in_turns(runs, arguments.rounds, arguments.queries)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


def made(directory: Path, items: int, events: int) -> Path:
    """Returns a finished run of a generated catalogue."""
    catalog, run = directory / f"catalog-{items}", directory / f"run-{items}"
    if not catalog.exists():
        directory.mkdir(parents=True, exist_ok=True)
        write_catalog(catalog, events, items, seed=0)
    stages: dict[str, Any] = {name: STAGES[name] for name in STAGES if name != "evaluate"}
    definition = directory / f"run-{items}.yaml"
    content = {"name": "sizes", "catalog": str(catalog), "stages": {**stages, "generate": GENERATE}}
    definition.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "workflows", "run", str(definition), "--run-dir", str(run)]
    subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603 - our own command
    return run


def in_turns(runs: dict[int, Path], rounds: int, queries: int) -> dict[str, Any]:
    """Returns the milliseconds of a request to each of some runs."""
    found: dict[int, list[float]] = {items: [] for items in runs}
    with ExitStack() as stack:
        asked = {}
        for at, (items, run) in enumerate(runs.items()):
            store = f"sqlite:{run}/benchmark.sqlite"
            pipeline = Pipeline(RunDir(str(run)), open_store(store, create=True))
            settings = Settings(run=str(run), store=store, open=True)
            port = stack.enter_context(server(settings, haproxy=False, port=PORT + at))
            asked[items] = (port, [body(query) for query in draw(pipeline, queries)])
        for _ in range(rounds):
            for items, (port, bodies) in asked.items():
                found[items].append(p50(latencies(port, "/v1/recommend", bodies)))
    medians = {items: 1e3 * statistics.median(times) for items, times in found.items()}
    return {"p50_ms": medians, "ratio": medians[max(runs)] / medians[min(runs)]}


if __name__ == "__main__":
    main()
