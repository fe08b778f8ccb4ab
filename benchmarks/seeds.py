"""Pools runs of one definition that differ in their seed: recall and NDCG of every recommender, with intervals.

python -m benchmarks.seeds RUN RUN RUN [--over sasrec] [--out FILE]

Reads what `evaluate` wrote to metrics/ranks. A figure is the mean over the runs; its interval is of resampled users and
resampled runs, the same for all recommenders, so that the ratios to the recommender `--over` are paired. `generator` is
the recommender that each run chose on validation.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.machine import machine
from models.evaluation.bootstrap import Estimate, bootstrap_means, interval, over_seeds
from models.evaluation.lists import CUT, ndcg, recall
from storage.run import RunDir

METRICS = {f"recall@{CUT}": recall, f"ndcg@{CUT}": ndcg}
QUERY = ["user", "item"]
DRAWS = 1_000


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--over", default="sasrec", help="recommender that ratios are over")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    runs = [RunDir(root) for root in arguments.runs]
    places = [ranks_of(run) for run in runs]
    if any(not other.select(QUERY).equals(places[0].select(QUERY)) for other in places[1:]):
        sys.exit("The runs were asked different queries: give runs of one catalogue and one definition.")
    if arguments.over not in places[0].columns[len(QUERY) :]:
        sys.exit(f"The runs have no recommender {arguments.over}: set --over to one of theirs.")
    seeds = [run.read_json("manifest.json")["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        sys.exit(f"The runs are of the seeds {seeds}: give each another one.")
    result = {**machine(), "runs": arguments.runs, "seeds": seeds, **pool(places, arguments.over)}
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


def ranks_of(run: RunDir) -> pl.DataFrame:
    """Returns where the next item stood, by query in a fixed order and recommender, with that of the chosen one."""
    table = pl.DataFrame(run.read_table("metrics", "ranks"))
    chosen = run.read_json("metrics", "generate.json")["chosen"]
    return table.sort(QUERY).with_columns(generator=pl.col(chosen))


def pool(places: list[pl.DataFrame], over: str) -> dict[str, Any]:
    """Returns `recommenders`, by name, and `ratios` to the recommender `over`.

    Args:
        places: of S runs, `user`, `item`, and by recommender the place of the item, 0 for none; the same queries.
        over: name of a recommender.
    """
    names = [name for name in places[0].columns if name not in QUERY]
    user = places[0]["user"].to_numpy()
    found: dict[tuple[str, str], Estimate] = {}
    for key, metric in METRICS.items():
        values = {
            (name, run): metric(place[name].to_numpy(), CUT) for name in names for run, place in enumerate(places)
        }
        samples = bootstrap_means(user, values, seed=0, draws=DRAWS)
        for name in names:
            means = np.array([values[name, run].mean() for run in range(len(places))])
            drawn = np.stack([samples[name, run] for run in range(len(places))])
            found[name, key] = over_seeds(means, drawn, seed=0)
    recommenders: dict[str, Any] = {name: {} for name in names}
    ratios: dict[str, Any] = {name: {} for name in names if name != over}
    for (name, key), estimate in found.items():
        recommenders[name] |= {
            key: estimate.mean,
            f"{key}_interval": estimate.interval,
            f"{key}_seeds": estimate.seeds.tolist(),
        }
        base = found[over, key]
        if name != over and base.mean:
            ratio = {key: estimate.mean / base.mean, f"{key}_interval": interval(estimate.drawn / base.drawn)}
            ratios[name] |= ratio
    return {"recommenders": recommenders, "ratios": ratios}


if __name__ == "__main__":
    main()
