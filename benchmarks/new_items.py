"""Whom a new item reaches that is posted with its picture alone, on the embedded catalogue.

python -m benchmarks.new_items --run RUN --out FILE [--items 40] [--users 5]

New items are drawn as those of the catalogue were, and posted one at a time to the run, without rules. Each is asked
for by users with 20 likes, drawn from the 40 items that share most of its true attributes; among equals at random.

own_picture     share of the users whose list of ten has it, and whose list of a hundred
other_picture   the same of an item that is posted with the picture of another new one
all             share of the places in lists of ten that all new items together have, for as many users of the log by
                what they liked last; and their share of the items
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks.machine import machine
from serving.pipeline import Pipeline
from serving.query import NewItem, Query
from serving.stores.opening import open_store
from storage import files
from storage.run import RunDir
from workflows.catalogs.synthetic.behaviour import ATTRIBUTES, draw_items
from workflows.catalogs.synthetic.drawing import Look, draw_photo
from workflows.engine.definition import definition_of

LIKES, NEAREST, LISTS = 20, 40, (10, 100)


def measure(run: RunDir, items: int, users: int) -> dict[str, Any]:
    """Returns the shares of users whom new items reach, with their own pictures and with those of others."""
    catalog = definition_of(run).catalog
    truth = files.read_table(files.join(catalog, "truth_items.parquet"))
    random = np.random.default_rng(0)
    new = draw_items([f"new-{number}" for number in range(items)], random)
    looks = [Look(**look) for look in new.select([*ATTRIBUTES, "clutter"]).to_pylist()]
    pictures = [draw_photo(look, np.random.default_rng([1, number]), "fill") for number, look in enumerate(looks)]
    found: dict[str, list[list[bool]]] = {"own_picture": [], "other_picture": []}
    with tempfile.TemporaryDirectory() as folder:
        pipeline = Pipeline(run, open_store(f"sqlite:{folder}/store.db", create=True))
        for number, look in enumerate(looks):
            near = nearest(truth, look, random)
            histories = [random.choice(near, LIKES, replace=False).tolist() for _ in range(users)]
            for name, picture in zip(found, (pictures[number], pictures[number - 1]), strict=True):
                pipeline.post_item(NewItem("new", picture=picture))
                for history in histories:
                    (answer,) = pipeline.recommend([Query(history=history, k=LISTS[-1])])
                    listed = [item.item_id for item in answer.items]
                    found[name].append(["new" in listed[:k] for k in LISTS])
                pipeline.delete_item("new")
        for number, picture in enumerate(pictures):
            pipeline.post_item(NewItem(f"new-{number}", picture=picture))
        answers = [pipeline.recommend([Query(history=history)])[0] for history in pasts(catalog, items * users)]
    places = [item.item_id.startswith("new-") for answer in answers for item in answer.items]
    together = {"places": float(np.mean(places)), "items": items / pipeline.items}
    shares = {name: np.mean(each, 0).tolist() for name, each in found.items()}
    own = {name: {f"in_{k}": share for k, share in zip(LISTS, each, strict=True)} for name, each in shares.items()}
    return {**own, "all": together}


def nearest(truth: pa.Table, look: Look, random: np.random.Generator) -> np.ndarray:
    """Returns the ids of the items that share most attributes with a look."""
    shared = sum((truth[name].to_numpy() == getattr(look, name)).astype(int) for name in ATTRIBUTES)
    order = np.lexsort([random.random(truth.num_rows), -shared])
    return truth["item_id"].to_numpy()[order[:NEAREST]]


def pasts(catalog: str, users: int) -> list[list[str]]:
    """Returns what some users of a catalogue liked last, oldest first."""
    log = pl.DataFrame(files.read_table(files.join(catalog, "interactions.parquet"))).filter(pl.col("label") > 0)
    of_users = log.sort("timestamp").group_by("user_id").agg(pl.col("item_id").tail(LIKES)).sort("user_id")
    return of_users["item_id"].head(users).to_list()


def main() -> None:
    """Writes the shares as JSON and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--users", type=int, default=5)
    given = parser.parse_args()
    result = {"machine": machine(), "items": given.items, "users": given.items * given.users}
    result |= measure(RunDir(given.run), given.items, given.users)
    files.write_json(given.out, result)
    sys.stdout.write(f"{json.dumps(result)}\n")


if __name__ == "__main__":
    main()
