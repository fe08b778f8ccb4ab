"""Measures the service beside the same pipeline in this process and beside an empty deployment.

python -m benchmarks.serve --run RUN --out FILE [--rounds 5] [--queries 200] [--soak MINUTES]

RUN is a finished run with a ranker, such as that of movielens.yaml. Queries tell a history of 20 items that users of
the run liked, and ask for ten items; content and the recommender that `generate` has chosen find 200 candidates, which
the ranker scores. In each round the empty deployment, the pipeline in this process on one thread, and the service take
turns; figures are medians over the rounds of the medians (or 99th percentiles) of a round.

    empty_p50_ms          an empty FastAPI deployment of Ray Serve, over HTTP
    in_process_p50_ms     the pipeline alone
    recommend_p50_ms      the service over HTTP
    overhead_ratio        (recommend_p50_ms - empty_p50_ms) / in_process_p50_ms
    ratio                 recommend_p50_ms / empty_p50_ms
    generator_ratio       the same with candidates of the language model, where the run has one; else null
    p99_over_p50          of the service at eight clients
    batching_gain         queries per second in this process in batches of 16 over one by one
    language_model_batching_gain  the same with candidates of the language model
    haproxy_gain          requests per second at eight clients with Ray Serve's HAProxy over those without
    http_batching_gain    requests per second at 32 clients with batches over those with one query at a time
    soak                  with --soak, see `benchmarks.serve_soak`

How the service's time grows with the catalogue is measured by `benchmarks.serve_sizes`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import machine
from benchmarks.serve_soak import soak
from models.recommenders.language_model import LanguageModelRecommender
from serving.pipeline import Pipeline
from serving.query import Query
from serving.settings import Settings
from serving.stores.opening import open_store
from storage.run import RunDir
from workflows.load import load_users

HISTORY, K, CLIENTS, MANY_CLIENTS, BATCH = 20, 10, 8, 32, 16
PORT = 8765
LANGUAGE_MODEL = LanguageModelRecommender.kind
SERVER = """
import json, sys, time
import ray
from fastapi import FastAPI
from ray import serve
from serving.deployments.service import application

api = FastAPI()

@serve.deployment(ray_actor_options={"num_cpus": 1})
@serve.ingress(api)
class Empty:
    @api.post("/")
    def nothing(self) -> dict:
        return {}

ray.init(address="local", num_cpus=8, include_dashboard=False, logging_level="WARNING", log_to_driver=False)
quiet = {"log_level": "WARNING", "enable_access_log": False}
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])}, logging_config=quiet)
serve.run(Empty.bind(), name="empty", route_prefix="/empty")
serve.run(application(json.loads(sys.argv[2])), name="tesserec", route_prefix="/")
print("ready", flush=True)
while True:
    time.sleep(1)
"""


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="a finished run with a ranker")
    parser.add_argument("--out", type=Path, help="file for the JSON object, beside stdout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=200, help="of a round")
    parser.add_argument("--soak", type=float, help="minutes under half of the measured capacity")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run = RunDir(arguments.run)
    store = f"sqlite:{run.root}/benchmark.sqlite"
    load_users(run.root, store, 1_000, lambda done, total: None)
    pipeline = Pipeline(run, open_store(store))
    queries = draw(pipeline, arguments.queries)
    result = {**machine(), "items": pipeline.items, "queries": len(queries), "rounds": arguments.rounds}
    settings = Settings(run=run.root, store=store, open=True)
    result |= in_process(pipeline, queries, arguments.rounds) | over_http(pipeline, settings, queries, arguments.rounds)
    if arguments.soak:
        with server(settings, haproxy=False) as port:
            rate = result["requests_per_second"] / 2
            result["soak"] = soak(port, [body(query) for query in queries], rate, arguments.soak)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


def draw(pipeline: Pipeline, count: int) -> list[Query]:
    """Returns queries with histories of items drawn by their popularity, each at most once."""
    random, likes = np.random.default_rng(0), pipeline.cascade.popularity + 1.0
    ids = np.array(pipeline.catalogue.ids.to_pylist(), object)
    histories = [random.choice(ids, HISTORY, replace=False, p=likes / likes.sum()) for _ in range(count)]
    return [Query(history=history.tolist(), k=K) for history in histories]


def in_process(pipeline: Pipeline, queries: Sequence[Query], rounds: int) -> dict[str, Any]:
    """Measures what batches gain, in turns with single queries."""
    kinds = {"batching_gain": list(queries), "language_model_batching_gain": _by_language_model(pipeline, queries)}
    return {key: _gain(pipeline, asked, rounds) if asked else None for key, asked in kinds.items()}


def _gain(pipeline: Pipeline, queries: list[Query], rounds: int) -> float:
    batches = [queries[at : at + BATCH] for at in range(0, len(queries), BATCH)]
    gains = []
    for _ in range(rounds):
        alone = sum(seconds(pipeline, [query]) for query in queries)
        gains.append(alone / sum(seconds(pipeline, batch) for batch in batches))
    return statistics.median(gains)


def over_http(pipeline: Pipeline, settings: Settings, queries: Sequence[Query], rounds: int) -> dict[str, Any]:
    """Measures the service beside an empty deployment and the pipeline in this process, in turns."""
    bodies, few = [body(query) for query in queries], _by_language_model(pipeline, queries)
    of_model = [body(query) for query in few]
    medians: dict[str, list[float]] = {"empty": [], "alone": [], "service": [], "language_model": []}
    tails, rates, many = [], {False: list[float](), True: list[float]()}, {False: list[float](), True: list[float]()}
    with server(settings, haproxy=False) as port:
        for _ in range(rounds):
            medians["empty"].append(p50(latencies(port, "/empty/", [{}] * len(bodies))))
            medians["alone"].append(p50([seconds(pipeline, [query]) for query in queries]))
            medians["service"].append(p50(latencies(port, "/v1/recommend", bodies)))
            if of_model:
                medians["language_model"].append(p50(latencies(port, "/v1/recommend", of_model)))
            taken, rate = at_once(port, bodies)
            tails.append(float(np.percentile(taken, 99)) / p50(taken))
            rates[False].append(rate)
            many[True].append(at_once(port, bodies, MANY_CLIENTS)[1])
    with server(settings.model_copy(update={"max_batch": 1}), haproxy=False) as port:
        many[False] = [at_once(port, bodies, MANY_CLIENTS)[1] for _ in range(rounds)]
    with server(settings, haproxy=True) as port:
        rates[True] = [at_once(port, bodies)[1] for _ in range(rounds)]
    empty, alone, service = (statistics.median(medians[name]) for name in ("empty", "alone", "service"))
    model = statistics.median(medians["language_model"]) if of_model else None
    return {
        "empty_p50_ms": 1e3 * empty,
        "in_process_p50_ms": 1e3 * alone,
        "recommend_p50_ms": 1e3 * service,
        "language_model_p50_ms": None if model is None else 1e3 * model,
        "overhead_ratio": (service - empty) / alone,
        "ratio": service / empty,
        "generator_ratio": None if model is None else model / empty,
        "p99_over_p50": statistics.median(tails),
        "requests_per_second": statistics.median(rates[False]),
        "http_batching_gain": statistics.median(many[True]) / statistics.median(many[False]),
        "haproxy_gain": statistics.median(rates[True]) / statistics.median(rates[False]),
    }


def _by_language_model(pipeline: Pipeline, queries: Sequence[Query]) -> list[Query]:
    """Returns a quarter of the queries, asking the language model alone; none where the run has none."""
    if LANGUAGE_MODEL not in pipeline.recommenders:
        return []
    return [replace(query, recommenders=(LANGUAGE_MODEL,)) for query in queries[: max(BATCH, len(queries) // 4)]]


def body(query: Query) -> dict[str, Any]:
    """Returns a query as the body of a request."""
    return {"history": list(query.history or ()), "k": query.k, "recommenders": list(query.recommenders)}


@contextmanager
def server(settings: Settings, *, haproxy: bool, port: int = PORT) -> Iterator[int]:
    """Serves on a port of this machine until the block ends."""
    environment = {**os.environ, "RAY_SERVE_ENABLE_HA_PROXY": "1" if haproxy else "0", "OMP_NUM_THREADS": "1"}
    arguments = [str(port), settings.model_dump_json()]
    process = subprocess.Popen(  # noqa: S603 - this file's own program
        [sys.executable, "-c", SERVER, *arguments], stdout=subprocess.PIPE, env=environment, text=True
    )
    try:
        if process.stdout is None or not any(line.strip() == "ready" for line in process.stdout):
            raise RuntimeError("the service did not come up")
        latencies(port, "/empty/", [{}] * 20)
        yield port
    finally:
        process.terminate()
        process.wait()


def latencies(port: int, path: str, bodies: Sequence[dict[str, Any]]) -> list[float]:
    """Returns the seconds of each of some requests, one after the other over one connection."""
    connection, found = http.client.HTTPConnection("127.0.0.1", port, timeout=60), []
    for each in bodies:
        began = time.perf_counter()
        connection.request("POST", path, json.dumps(each), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        found.append(time.perf_counter() - began)
        if response.status != 200:
            raise RuntimeError(f"{path} answers {response.status}: {answer[:500]!r}")
    connection.close()
    return found


def at_once(port: int, bodies: Sequence[dict[str, Any]], clients: int = CLIENTS) -> tuple[list[float], float]:
    """Sends requests from some clients; returns the seconds of each, and requests per second."""
    with ThreadPoolExecutor(clients) as threads:
        began = time.perf_counter()
        shares = [bodies[at::clients] for at in range(clients)]
        parts = list(threads.map(lambda share: latencies(port, "/v1/recommend", share), shares))
    return [each for part in parts for each in part], len(bodies) / (time.perf_counter() - began)


def seconds(pipeline: Pipeline, queries: Sequence[Query]) -> float:
    """Returns the seconds that some queries take together."""
    began = time.perf_counter()
    pipeline.recommend(queries)
    return time.perf_counter() - began


def p50(values: Sequence[float]) -> float:
    """Returns the median."""
    return statistics.median(values)


if __name__ == "__main__":
    main()
