"""Asks the service for the test users of a run, and compares its lists with those of the pipeline in this process.

python -m benchmarks.serve_quality --run RUN --out FILE [--queries 2000]

RUN is a finished run. Its test queries are sent over HTTP as requests of visitors with a history, in which what the
user had met by then is excluded, and are asked of the pipeline as `evaluate` asks it. Both know what the whole log says
of how popular items are, the events that are asked for included, as a service does: their figures say that they are
alike, and those of `evaluate`, which knows training alone, how good they are. Left out of both are queries that exclude
more ids than a request may name, and those without a history, which have popular items.

    queries                that were sent
    too_long, no_history   that were not
    same_lists             share of the lists of ten that are the same, item by item
    http, offline          recall@10 and NDCG@10 of either
    evaluated              what `evaluate` told: recall@10, NDCG@10, the best single recommender on the same queries
                           and the ratio of NDCG@10 to its, with its interval of resampled users, and the AUC of the
                           ranker's probabilities within the lists
"""

from __future__ import annotations

import argparse
import http.client
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.machine import machine
from benchmarks.serve import server
from models.common.jagged import gather
from models.common.recommender import Queries
from models.evaluation.lists import CUT, ndcg, ranks, recall
from operators.log.partitions import item_ids, open_log
from operators.log.sequences import read_queries
from serving.cascade import PIPELINE, Cascade
from serving.ranking import Users
from serving.settings import MAX_IDS, Settings
from serving.stores.opening import open_store
from storage.run import RunDir
from workflows.engine import definition

METRICS = {f"recall@{CUT}": recall, f"ndcg@{CUT}": ndcg}
BLOCK = 64


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="a finished run")
    parser.add_argument("--queries", type=int, default=2_000, help="of the test split, at most")
    parser.add_argument("--out", type=Path, help="file for the JSON object, beside stdout")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {**machine(), "run": arguments.run, **compare(RunDir(arguments.run), arguments.queries)}
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


def compare(run: RunDir, most: int) -> dict[str, Any]:
    """Returns the figures of a run."""
    resolved = definition.load(run.uri("workflow.yaml"), [])
    asked = run.read_json("metrics", "generate.json")["queries"]
    test = read_queries(open_log(run), resolved.split, "test", **asked, most=most, seed=resolved.seed)
    fits, told = test.seen.offsets.diff().numpy() <= MAX_IDS, test.histories.offsets.diff().numpy() > 0
    chosen = np.flatnonzero(fits & told)
    queries, ids = test.take(chosen), item_ids(run)
    offline = of_cascade(Cascade(run), queries)
    store = f"sqlite:{run.root}/benchmark.sqlite"
    open_store(store, create=True).close()
    with server(Settings(run=run.root, store=store, open=True), haproxy=False) as port:
        online = over_http(port, queries, ids)
    places = {"http": ranks(online, queries.target.numpy()), "offline": ranks(offline, queries.target.numpy())}
    card = run.read_json("metrics", "evaluate.json")[PIPELINE]
    return {
        "queries": len(queries.user),
        "too_long": int((~fits).sum()),
        "no_history": int((fits & ~told).sum()),
        "same_lists": float((online == offline).all(1).mean()),
        **{
            name: {key: float(metric(found, CUT).mean()) for key, metric in METRICS.items()}
            for name, found in places.items()
        },
        "evaluated": {key: card[key] for key in (*METRICS, "best", "over_best", "over_best_interval", "list_auc")},
    }


def of_cascade(cascade: Cascade, queries: Queries) -> np.ndarray:
    """Returns the lists of ten that the pipeline's core gives, rows int64 [Q, 10]."""
    wanted, found = cascade.blend.candidates, []
    for rows in torch.arange(len(queries.user)).split(BLOCK):
        users = Users.visitors(gather(queries.histories, rows))
        ranked = cascade.ranked(users, wanted, banned=gather(queries.seen, rows))
        order = cascade.scores(ranked, wanted).argsort(dim=1, descending=True, stable=True)
        found.append(ranked.items.gather(1, order[:, :CUT]))
    return torch.cat(found).numpy()


def over_http(port: int, queries: Queries, ids: pa.ChunkedArray) -> np.ndarray:
    """Returns the lists of ten of the service, rows int64 [Q, 10]; -1 where it gives fewer."""
    names = np.array(ids.to_pylist(), object)
    row_of = {name: row for row, name in enumerate(names)}
    connection, found = http.client.HTTPConnection("127.0.0.1", port, timeout=60), []
    for at in range(len(queries.user)):
        history, seen = (
            names[part.values[part.offsets[at] : part.offsets[at + 1]].numpy()].tolist()
            for part in (queries.histories, queries.seen)
        )
        body = json.dumps({"history": history, "exclude": seen, "k": CUT})
        connection.request("POST", "/v1/recommend", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        rows = [row_of[item["item_id"]] for item in answer["items"]]
        found.append(rows + [-1] * (CUT - len(rows)))
    return np.array(found)


if __name__ == "__main__":
    main()
