"""A small shop that grows from week to week, as catalogues, and a definition that fits it in seconds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from workflows.engine.definition import Definition, resolve

ITEMS, MORE, USERS, DAYS, PER_DAY = 90, 6, 40, 28, 60
KINDS = ("vase", "lamp", "chair", "rug", "clock")
ODD = ("bicycle with two wheels", "truck with a diesel engine", "motor boat")  # of a shifted week
COLOURS = ("red", "green", "blue", "white")
DAY_US = 86_400_000_000
START, TIME = 1_735_689_600_000_000, pl.Datetime("us", "UTC")  # of 2025
STAGES: dict[str, Any] = {
    "ingest": {},
    "interpret": {},
    "project": {"width": 16},
    "quantize": {"method": "rqkmeans", "codebook_sizes": [6, 5]},
    "features": {},
    "rank": {"epochs": 4, "batch_size": 128, "embedding_lr": 0.05},
    "generate": {
        "item_knn": {"neighbours": [10], "shrinkages": [0]},
        "sasrec": {"model": {"dim": 8, "inner": 16, "layers": 1, "dropout": 0.1}, "fit": {"steps": 40}},
        "product_codes": {
            "codes": 4,
            "codewords": 8,
            "width": 4,
            "model": {"dim": 16, "inner": 16, "layers": 1, "dropout": 0.1, "residual": 0.2},
            "fit": {"steps": 40},
        },
        "language_model": {
            "backbone": {"name": "tiny", "layers": 1, "dim": 16, "heads": 2, "mlp": 32},
            "beams": 20,
            "fit": {"steps": 20},
        },
    },
    "evaluate": {"bootstrap": 50, "pipeline_queries": 50},
    "report": {},
}
FIT = {"validate_every": 10, "learning_rate": 0.02, "batch_size": 16, "warmup": 5, "precision": "fp32"}


def definition(catalog: Path, **changed: Any) -> Definition:
    """The workflow over a catalogue; stages by name replace those above, null leaves one out."""
    stages = copy.deepcopy(STAGES)
    for name in ("sasrec", "product_codes", "language_model"):
        stages["generate"][name]["fit"] |= FIT
    stages |= changed.pop("stages", {})
    kept = {name: settings for name, settings in stages.items() if settings is not None}
    return resolve({"name": "shop", "catalog": str(catalog), "stages": kept, **changed}, source="shop")


def write_week(
    folder: Path,
    week: int,
    *,
    seed: int = 0,
    broken: bool = False,
    gone: frozenset[str] = frozenset(),
    renamed: frozenset[str] = frozenset(),
    parted: bool = False,
    shifted: bool = False,
) -> Path:
    """The catalogue as it stands behind so many weeks: items come each week, and the log goes on.

    Args:
        folder: to write it to.
        week: 0 for the first one.
        seed: of all that is drawn; the same shop for any week.
        broken: the newest week has half of its events, with labels inverted.
        gone: ids of users and items that are no longer there.
        renamed: ids of items that have another title now.
        parted: the log is a folder with a file for each week.
        shifted: there are 60 more items, of other kinds, which a third of the newest week's events are about.
    """
    random = np.random.default_rng(seed)
    items = [f"item-{number}" for number in range(ITEMS + MORE * 5)]
    kind, colour = random.integers(0, len(KINDS), len(items)), random.integers(0, len(COLOURS), len(items))
    days = DAYS + 7 * 5
    day = np.repeat(np.arange(days), PER_DAY)
    user = random.integers(0, USERS, len(day))
    listed = ITEMS + MORE * (np.maximum(day - DAYS, -1) // 7 + 1)
    item = (random.random(len(day)) * listed).astype(int)
    likes = 0.1 + 0.5 * (user % len(KINDS) == kind[item]) + 0.2 * (user % len(COLOURS) == colour[item])
    log = pl.DataFrame(
        {
            "user_id": [f"user-{number}" for number in user],
            "item_id": [items[number] for number in item],
            "timestamp": pl.Series(np.sort(START + day * DAY_US + random.integers(0, DAY_US, len(day)))).cast(TIME),
            "label": (random.random(len(day)) < likes).astype(np.float32),
            "day": day,
        }
    ).filter(pl.col("day") < DAYS + 7 * week)
    if broken:
        last = pl.col("day") >= DAYS + 7 * (week - 1)
        inverted = pl.when(last).then(1 - pl.col("label")).otherwise("label").cast(pl.Float32).alias("label")
        log = log.with_columns(inverted).filter(~last | (pl.int_range(pl.len()) % 2 == 0))
    left = ITEMS + MORE * week
    rows = [
        {
            "item_id": items[number],
            "title": f"{COLOURS[colour[number]]} {KINDS[kind[number]]}{' again' * (items[number] in renamed)} {number}",
            "description": f"A {KINDS[kind[number]]} for the home",
            "attributes": {"kind": KINDS[kind[number]]} if number else None,
        }
        for number in range(left)
        if items[number] not in gone
    ]
    if shifted:
        odd = [f"odd-{number}" for number in range(60)]
        rows += [
            {
                "item_id": item,
                "title": f"{ODD[number % len(ODD)]} {number}",
                "description": "For the open road",
                "attributes": {"kind": ODD[number % len(ODD)]},
            }
            for number, item in enumerate(odd)
        ]
        picked = pl.Series(random.choice(odd, log.height))
        about = (pl.col("day") >= DAYS + 7 * (week - 1)) & (pl.int_range(pl.len()) % 3 == 0)
        log = log.with_columns(item_id=pl.when(about).then(pl.lit(picked)).otherwise("item_id"))
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows).write_parquet(folder / "items.parquet")
    log = log.filter(~pl.col("user_id").is_in(list(gone)) & ~pl.col("item_id").is_in(list(gone)))
    if not parted:
        log.drop("day").write_parquet(folder / "interactions.parquet")
        return folder
    (folder / "interactions").mkdir()
    for number in range(week + 1):
        of_week = (pl.col("day") < DAYS) if number == 0 else (pl.col("day") - DAYS) // 7 == number - 1
        log.filter(of_week).drop("day").write_parquet(folder / "interactions" / f"{number}.parquet")
    return folder
