"""Weeks of the embedded catalogue, one update a week, beside a refit from scratch each week.

python -m benchmarks.weeks DIR [--weeks 4] [--seeds 0 1 2] [--items 800] [--users 2000] [--definition YAML]
    [--set a.b=c] [--texts] [--odd shift broken] [--out FILE]

DIR is written to, and what is there already is not run again. For every seed the catalogue is generated once and cut
by time: `week-0` ends so many weeks before the log does, and each week more has the items and events that came by then.
`fit-0` is the run of week 0; `update-K` is `tesserec update` of the run before, and `fit-K` is fitted from scratch on
the same catalogue with the same definition. Both are asked the same test split. Told are

* NDCG@10 of the generators that both have chosen and AUC of the rankers, pooled over weeks and seeds, with the ratios
  of update to refit, whose intervals are of resampled users;
* CPU seconds of both, all processes that they start included, and the seconds of every stage;
* how many semantic IDs an update has moved;
* the verdicts, also of two odd weeks in place of the last one: `shift` (new items are of other kinds, in inverted
  colours) and `broken` (half of the week's events are missing, the labels of the others inverted).

With `--texts` items come without their media, and titles and descriptions alone tell of them: a run takes a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
from PIL import Image, ImageOps

from benchmarks.machine import machine
from models.evaluation.bootstrap import bootstrap_auc, bootstrap_means, interval
from models.evaluation.clicks import auc
from models.evaluation.lists import CUT, ndcg
from models.ranking.ranker import load_ranker
from operators.features.ranker_inputs import Examples, predict, read_items
from storage.manifest import require_manifest
from storage.run import RunDir
from workflows.catalogs.synthetic.sample import write_sample

DRAWS = 400
WEEK = timedelta(days=7)
KINDS = ("teapot", "bicycle", "tent", "guitar", "kite", "globe", "anchor", "ladder")  # of a shifted week
LOOK_S = 0.25
STATUS = {0: "promote", 3: "keep the old one", 4: "refit"}


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--weeks", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--items", type=int, default=800)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--definition", default="workflows/definitions/demo.yaml")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--texts", action="store_true")
    parser.add_argument("--odd", nargs="*", choices=("shift", "broken"), default=["shift", "broken"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    weeks = [found for seed in arguments.seeds for found in grown(arguments, seed)]
    odd = {f"{kind} {seed}": odd_week(arguments, seed, kind) for kind in arguments.odd for seed in arguments.seeds}
    told = [{key: value for key, value in week.items() if key != "pairs"} for week in weeks]
    result = {**machine(), **pooled(weeks), "weeks": told, "odd": odd}
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


def grown(arguments: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Runs all weeks of a seed; returns what each of them has come to."""
    folder = arguments.directory / f"seed-{seed}"
    whole = folder / "whole"
    if not whole.exists():
        write_sample(str(whole), items=arguments.items, users=arguments.users, seed=seed)
    found = []
    for week in range(arguments.weeks + 1):
        catalog = write_week(whole, folder / f"week-{week}", left=arguments.weeks - week, texts=arguments.texts)
        fitted = run_here(arguments, seed, catalog, folder / f"fit-{week}")
        if week == 0:
            before = folder / "fit-0"
            continue
        updated = run_here(arguments, seed, catalog, folder / f"update-{week}", before)
        runs = [RunDir(str(folder / f"{kind}-{week}")) for kind in ("update", "fit")]
        found.append(
            {
                "seed": seed,
                "week": week,
                "verdict": updated["verdict"],
                "reasons": updated["reasons"],
                "sids_moved": moved(RunDir(str(before)), runs[0]),
                "cpu_seconds": {"update": updated["cpu_seconds"], "fit": fitted["cpu_seconds"]},
                "stages": {"update": updated["stages"], "fit": fitted["stages"]},
                "pairs": pairs_of(*runs),
            }
        )
        before = folder / f"update-{week}"
    return found


def odd_week(arguments: argparse.Namespace, seed: int, kind: str) -> dict[str, Any]:
    """Returns the verdict on the last week, had it been an odd one."""
    folder, last = arguments.directory / f"seed-{seed}", arguments.weeks
    normal, odd = folder / f"week-{last}", folder / f"{kind}-{last}"
    if not odd.exists():
        (write_shifted if kind == "shift" else write_broken)(normal, odd, seed)
    before = folder / (f"update-{last - 1}" if last > 1 else "fit-0")
    found = run_here(arguments, seed, odd, folder / f"update-{kind}", before)
    return {"verdict": found["verdict"], "reasons": found["reasons"]}


def write_week(whole: Path, folder: Path, *, left: int, texts: bool = False) -> Path:
    """Writes what the catalogue has with so many weeks left; media stay where they are, or are left out."""
    if folder.exists():
        return folder
    log = pl.read_parquet(whole / "interactions.parquet")
    log = log.filter(pl.col("timestamp") < pl.datetime(2100, 1, 1, time_zone="UTC"))  # rows that are broken on purpose
    log = log.filter(pl.col("timestamp") <= pl.col("timestamp").max() - left * WEEK)
    truth = pl.read_parquet(whole / "truth_items.parquet").filter(pl.col("first_seen") <= log["timestamp"].max())
    items = pl.read_parquet(whole / "items.parquet").filter(pl.col("item_id").is_in(truth["item_id"].to_list()))
    place = pl.format("file://{}/{}", pl.lit(str(whole.absolute())), pl.element().struct.field("uri"))
    media = pl.col("media").list.eval(pl.struct(uri=place, kind=pl.element().struct.field("kind")))
    folder.mkdir(parents=True)
    (items.drop("media") if texts else items.with_columns(media)).write_parquet(folder / "items.parquet")
    log.write_parquet(folder / "interactions.parquet")
    return folder


def write_broken(normal: Path, folder: Path, seed: int) -> None:
    """Writes a week of which half of the events are missing, and the labels of the others inverted."""
    log = pl.read_parquet(normal / "interactions.parquet").with_row_index()
    newest = pl.col("timestamp") > pl.col("timestamp").max() - WEEK
    lost = log.filter(newest).sample(fraction=0.5, seed=seed)["index"]
    label = pl.when(newest).then(1 - pl.col("label")).otherwise("label").alias("label")
    log = log.with_columns(label).filter(~pl.col("index").is_in(lost.to_list())).drop("index")
    _write(folder, pl.read_parquet(normal / "items.parquet"), log)


def write_shifted(normal: Path, folder: Path, seed: int) -> None:
    """Writes a week with a tenth more items, of other kinds, which half of its events are about."""
    items, random = pl.read_parquet(normal / "items.parquet"), np.random.default_rng(seed)
    seen = "media" in items.columns
    pictured = pl.col("media").list.first().struct.field("kind") == "image" if seen else pl.lit(value=True)
    models = items.filter(pictured).sample(max(60, items.height // 10), with_replacement=True, seed=seed)
    (folder / "media").mkdir(parents=True)
    rows = []
    for number, row in enumerate(models.iter_rows(named=True)):
        name, kind = f"odd-{number:05d}", KINDS[number % len(KINDS)]
        picture = folder.absolute() / "media" / f"{name}.jpg"
        if seen:
            with Image.open(row["media"][0]["uri"].removeprefix("file://")) as image:
                ImageOps.invert(image.convert("RGB").rotate(90)).save(picture)
            row["media"] = [{"uri": f"file://{picture}", "kind": "image"}]
        texts = {"title": f"{kind} no. {number}", "description": f"A {kind} for the open air."}
        rows.append({**row, "item_id": name, **texts})
    log = pl.read_parquet(normal / "interactions.parquet")
    times = log["timestamp"].to_numpy()
    newest = (times > times.max() - np.timedelta64(WEEK)) & (random.random(log.height) < 0.5)
    names = np.array([row["item_id"] for row in rows])[random.integers(0, len(rows), log.height)]
    item = pl.when(pl.lit(pl.Series(newest))).then(pl.lit(pl.Series(names))).otherwise("item_id").alias("item_id")
    _write(folder, pl.concat([items, pl.DataFrame(rows, schema=items.schema)]), log.with_columns(item))


def _write(folder: Path, items: pl.DataFrame, log: pl.DataFrame) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    items.write_parquet(folder / "items.parquet")
    log.write_parquet(folder / "interactions.parquet")


def run_here(
    arguments: argparse.Namespace, seed: int, catalog: Path, target: Path, before: Path | None = None
) -> dict[str, Any]:
    """Runs a week as the user would, and counts its CPU seconds; what is finished is read from beside it."""
    kept = target.with_suffix(".json")
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    if before is None:
        roots = f"stages.interpret.fetch.roots=[{catalog.absolute().parent}]"
        alone = "stages.interpret.cache=false"  # else whoever comes second finds the captions of the first
        settings = [f"catalog={catalog.absolute()}", f"seed={seed}", roots, alone, *arguments.overrides]
        command = ["run", arguments.definition, *(part for each in settings for part in ("--set", each))]
    else:
        command = ["update", str(before), "--catalog", str(catalog)]
    status, seconds = counted([sys.executable, "-m", "workflows", *command, "--run-dir", str(target)])
    if status not in STATUS:
        sys.exit(f"{target} failed with status {status}.")
    entries = require_manifest(str(target)).stages
    update = entries["evaluate"].metrics.get("update", {})
    found = {
        "verdict": update.get("verdict"),
        "reasons": update.get("reasons"),
        "status": status,
        "cpu_seconds": seconds,
        "stages": {name: entry.seconds for name, entry in entries.items()},
    }
    kept.write_text(json.dumps(found))
    return found


def counted(command: Sequence[str]) -> tuple[int, float]:
    """Runs a command; returns its status, and the CPU seconds of all processes below it, as last seen of each."""
    process = psutil.Popen(command)
    seen: dict[int, float] = {}
    while (status := process.poll()) is None:
        for each in (process, *process.children(recursive=True)):
            try:
                times = each.cpu_times()
                seen[each.pid] = times.user + times.system
            except psutil.Error:
                continue
        time.sleep(LOOK_S)
    return int(status), round(sum(seen.values()), 1)


def moved(before: RunDir, after: RunDir) -> int:
    """Counts the items whose semantic ID is another than in the run before."""
    old, new = (pl.DataFrame(run.read_table("sids", columns=["item_id", "codes"])) for run in (before, after))
    both = old.join(new, on="item_id", how="left", suffix=" now")
    return both.filter(pl.col("codes").cast(pl.List(pl.Int32)) != pl.col("codes now").cast(pl.List(pl.Int32))).height


def pairs_of(updated: RunDir, fitted: RunDir) -> dict[str, dict[str, np.ndarray]]:
    """Returns what both runs say of the same queries and of the same test examples, by metric."""
    ranks = [pl.DataFrame(run.read_table("metrics", "ranks")) for run in (updated, fitted)]
    if not ranks[0].select("user", "item").equals(ranks[1].select("user", "item")):
        sys.exit(f"{updated.root} and {fitted.root} were asked different queries.")
    chosen = [run.read_json("metrics", "generate.json")["chosen"] for run in (updated, fitted)]
    gains = [ndcg(places[name].to_numpy(), CUT) for places, name in zip(ranks, chosen, strict=True)]
    told = [_probabilities(run) for run in (updated, fitted)]
    if not np.array_equal(told[0]["label"], told[1]["label"]):
        sys.exit(f"{updated.root} and {fitted.root} have different test examples.")
    return {
        "ndcg": {"user": ranks[0]["user"].to_numpy(), "update": gains[0], "fit": gains[1]},
        "auc": {
            "user": told[0]["user"],
            "label": told[0]["label"],
            "update": told[0]["score"],
            "fit": told[1]["score"],
        },
    }


def _probabilities(run: RunDir) -> dict[str, np.ndarray]:
    ranker, test = load_ranker(run.uri("models", "ranker")), run.read_table("features", "test")
    score = predict(ranker, read_items(run, ranker.config), Examples(test, ranker.config.dense))
    return {"user": test["user_hash"].to_numpy(), "label": test["label"].to_numpy(), "score": score}


def pooled(weeks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns means over weeks and seeds, and ratios of update to refit with intervals of resampled users."""
    lists, clicks = ([week["pairs"][name] for week in weeks] for name in ("ndcg", "auc"))
    user = np.concatenate([each["user"] ^ week["seed"] for each, week in zip(lists, weeks, strict=True)])
    gains = {kind: np.concatenate([each[kind] for each in lists]) for kind in ("update", "fit")}
    drawn = bootstrap_means(user, gains, seed=0, draws=DRAWS)
    areas = {kind: [auc(each["label"], each[kind]) for each in clicks] for kind in ("update", "fit")}
    resampled = [
        bootstrap_auc([each["user"]], each["label"], {kind: each[kind] for kind in areas}, seed=0, draws=DRAWS)
        for each in clicks
    ]
    cpu = {kind: sum(week["cpu_seconds"][kind] for week in weeks) for kind in ("update", "fit")}
    return {
        "ndcg@10": {kind: float(values.mean()) for kind, values in gains.items()},
        "ndcg@10_ratio": float(gains["update"].mean() / gains["fit"].mean()),
        "ndcg@10_ratio_interval": interval(drawn["update"] / drawn["fit"]),
        "auc": {kind: float(np.mean(values)) for kind, values in areas.items()},
        "auc_ratio": float(np.mean(areas["update"]) / np.mean(areas["fit"])),
        "auc_ratio_interval": interval(
            np.mean([each["update"] for each in resampled], 0) / np.mean([each["fit"] for each in resampled], 0)
        ),
        "cpu_seconds": cpu,
        "cpu_share": cpu["update"] / cpu["fit"],
        "sids_moved": sum(week["sids_moved"] for week in weeks),
    }


if __name__ == "__main__":
    main()
