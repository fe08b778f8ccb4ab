"""Compares the ranker's training loop with peers: samples per second, test AUC, and the cost of a big table.

python -m benchmarks.ranker --data DIR --out FILE [--rounds 3] [--rows 1000000] [--only ours torch_rechub ...]

Every variant (library with settings) trains the same DCN-V2 for one epoch on the first 90 % of a generated log
(`ranker_data`) and scores the rest, in a separate process with as many threads. Variants alternate within a round; a
round is a seed. Seconds are those of the whole loop with its input, from tables in memory; our loop starts from Arrow,
the others from arrays made before. `ours` and `plain_pytorch` are the fastest of their settings that are as good as
their best. `big_table` is a short run with the largest vocabulary at ten million rows. Finished measurements are kept
in FILE.jsonl, from which the same command resumes. The peers need `.venv-bench` (`make bench-setup`), where this script
restarts itself if they are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks import ranker_peers as peers
from benchmarks.machine import machine, with_peers
from benchmarks.ranker_data import BAGS, DENSE, TEST_SHARE, VOCABULARIES, prepare, read
from models.common.collectives import single_worker_group
from models.common.jagged import Jagged, gather
from models.evaluation.clicks import auc
from models.ranking.config import Dcnv2, RankerConfig, Table
from models.ranking.ranker import Ranker, RankerInputs, moments
from models.ranking.training import Trainer
from operators.columns import jagged_of
from operators.features.ranker_inputs import keyed

BIG_ROWS = 10_000_000
BIG_STEPS, BIG_WARM_UP = 60, 5
EQUAL_AUC = 0.001  # loss of AUC up to which bf16 counts as equal

# Learning rates (of the tables, of the rest), the best of a few on a tenth of the rows.
RATES: dict[str, tuple[float, float]] = {
    "ours": (0.1, 0.002),
    "plain_pytorch": (0.1, 0.002),
    "torch_rechub": (0.0, 0.005),
    "deepctr_torch": (0.0, 0.005),
}


class Data:
    """Rows of the log as tensors, directly from Arrow."""

    def __init__(self, rows: pa.Table, settings: peers.Settings) -> None:
        columns = [rows[name].to_numpy() for name in settings.vocabularies]
        self.names, self.ids = list(settings.vocabularies), torch.from_numpy(np.stack(columns, 1, dtype=np.int64))
        self.bags = {name: jagged_of(rows[name]) for name in settings.bags}
        self.dense = torch.from_numpy(np.stack([rows[name].to_numpy() for name in settings.dense], axis=1))
        self.label = torch.tensor(rows["label"].to_numpy())

    def batch(self, at: torch.Tensor) -> RankerInputs:
        """Returns the ranker's input for the rows at positions int64 [B]."""
        single = torch.arange(len(at) + 1)
        ids = self.ids.index_select(0, at).T.contiguous()
        features = {name: Jagged(column, single) for name, column in zip(self.names, ids, strict=True)}
        features |= {name: gather(bag, at) for name, bag in self.bags.items()}
        return RankerInputs(
            sparse=keyed(features),
            weighted=None,
            dense=self.dense[at],
            label=self.label[at],
            rows=torch.tensor(float(len(at))),
        )


def fit_ours(train: pa.Table, test: pa.Table, settings: peers.Settings) -> peers.Fit:
    """Trains our ranker with our trainer, with one worker."""
    torch.manual_seed(settings.seed)
    with single_worker_group():
        ranker = Ranker(_config(settings))
        dense = torch.from_numpy(np.stack([train[name].to_numpy() for name in settings.dense], axis=1))
        ranker.set_statistics(dense=moments(dense), rate=float(train["label"].to_numpy().mean()))
        trainer = Trainer(
            ranker,
            device=torch.device("cpu"),
            embedding_lr=settings.embedding_lr,
            dense_lr=settings.dense_lr,
            weight_decay=0.0,
            precision=settings.precision,  # type: ignore[arg-type]
            embedding_optimizer="adagrad",
            seed=settings.seed,
        )
        watch = peers.Stopwatch(settings)
        data = Data(train, settings)
        batches = list(peers.batches(len(train), settings))
        for _ in trainer.steps(data.batch(at) for at in batches):
            watch.tick()
        seconds = watch.seconds()
        rows = sum(len(at) for at in batches[settings.warm_up :])
        scores = trainer.logits(len(test), Data(test, settings).batch, batch_size=settings.batch_size)
    return peers.Fit(seconds, rows, scores.numpy())


def _config(settings: peers.Settings) -> RankerConfig:
    tables = {name: Table(rows=rows, features=(name,)) for name, rows in settings.vocabularies.items()}
    tables |= {name: Table(rows=rows, features=(name,), pooling="mean") for name, rows in settings.bags.items()}
    return RankerConfig(
        tables=tables,
        dense=settings.dense,
        embedding_dim=settings.embedding_dim,
        architecture=Dcnv2(cross_layers=settings.cross_layers, cross_rank=None, hidden=settings.hidden),
    )


VARIANTS: dict[str, tuple[str, Callable[..., peers.Fit], dict[str, Any]]] = {  # name: learning rates, fit, settings
    "ours": ("ours", fit_ours, {"precision": "bf16"}),
    "plain_pytorch": ("plain_pytorch", peers.fit_plain, {"precision": "bf16"}),
    "ours_fp32": ("ours", fit_ours, {}),
    "plain_pytorch_fp32": ("plain_pytorch", peers.fit_plain, {}),
    "plain_pytorch_tables": (
        "plain_pytorch",
        partial(peers.fit_plain, one_table=False),
        {"precision": "bf16"},
    ),
    "torch_rechub": ("torch_rechub", peers.fit_torch_rechub, {}),
    "deepctr_torch": ("deepctr_torch", peers.fit_deepctr_torch, {}),
}
BIG_VARIANTS: dict[str, tuple[str, Callable[..., peers.Fit], dict[str, Any]]] = {
    "ours": VARIANTS["ours"],
    "plain_pytorch": VARIANTS["plain_pytorch"],
    "plain_pytorch_dense": (
        "plain_pytorch",
        partial(peers.fit_plain, one_table=False, sparse=False),
        {"precision": "bf16"},
    ),
}


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder for the generated log, made where absent")
    parser.add_argument("--out", required=True, type=Path, help="file for the JSON object, beside stdout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the log, a tenth of them for the test")
    parser.add_argument("--threads", type=int, default=2, help="of every variant")
    parser.add_argument("--only", nargs="*", choices=[*VARIANTS, "input", "big_table"], help="what to measure")
    arguments = parser.parse_args()
    shortest = round((BIG_STEPS + BIG_WARM_UP) * peers.Settings.batch_size / (1 - TEST_SHARE)) + 1
    if arguments.rows < shortest and (arguments.only is None or "big_table" in arguments.only):
        parser.error(f"big_table needs {shortest} rows: set --rows to so many, or leave it out by --only")
    with_peers("torch_rechub", "benchmarks.ranker")
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    log = prepare(arguments.data, arguments.rows)
    config = {"log": log, "threads": arguments.threads, "learning_rates": RATES, **described(settings_of("ours"))}
    chosen = [
        (part, name)
        for part, name in jobs()
        if arguments.only is None or (name if part == "epoch" else part) in arguments.only
    ]
    found = Finished(arguments.out.with_name(arguments.out.name + ".jsonl"), config)
    for turn in range(arguments.rounds):
        for part, name in chosen:
            if (part, name, turn) not in found.figures:
                found.add(part, name, turn, alone(part, name, arguments.data, turn))
    result = {**machine(), "rounds": arguments.rounds, **summary(found.figures), "config": config}
    text = json.dumps(result, indent=2)
    print(text)
    arguments.out.write_text(text + "\n", encoding="utf-8")


def jobs() -> list[tuple[str, str]]:
    """Returns (part, variant) of all measurements of a round, in order."""
    return [("epoch", name) for name in VARIANTS] + [("input", "ours")] + [("big_table", name) for name in BIG_VARIANTS]


def settings_of(name: str, **changed: Any) -> peers.Settings:
    """Returns the settings of a variant."""
    rates, _, own = (VARIANTS | BIG_VARIANTS)[name]
    tables, rest = RATES[rates]
    known: dict[str, Any] = {
        "vocabularies": VOCABULARIES,
        "bags": BAGS,
        "dense": DENSE,
        "embedding_lr": tables,
        "dense_lr": rest,
    }
    return peers.Settings(**(known | own | changed))


def alone(part: str, name: str, folder: Path, turn: int) -> dict[str, float]:
    """Measures in a separate process, for its peak memory."""
    began = time.perf_counter()
    with ProcessPoolExecutor(1, mp_context=torch.multiprocessing.get_context("spawn")) as pool:
        figures = pool.submit(MEASURES[part], name, folder, turn).result()
    figures["process_seconds"] = round(time.perf_counter() - began, 1)
    print(f"round {turn}: {part} {name} {figures}", file=sys.stderr, flush=True)
    return figures


def epoch(name: str, folder: Path, turn: int) -> dict[str, float]:
    """Measures the samples per second of one epoch, and the AUC of the test rows."""
    train, test = _start(folder)
    fit = VARIANTS[name][1](train, test, settings_of(name, seed=turn))
    score = auc(test["label"].to_numpy(), fit.scores)
    return {"samples_per_second": fit.rows / fit.seconds, "auc": score, "peak_gib": peak_gib()}


def input_alone(name: str, folder: Path, turn: int) -> dict[str, float]:
    """Measures the rows per second from Arrow to shuffled batches of our ranker's input, over one epoch."""
    train, _ = _start(folder)
    settings = settings_of(name, seed=turn)
    began = time.perf_counter()
    data = Data(train, settings)
    for at in peers.batches(len(train), settings):
        data.batch(at)
    return {"rows_per_second": len(train) / (time.perf_counter() - began), "peak_gib": peak_gib()}


def big_table(name: str, folder: Path, turn: int) -> dict[str, float]:
    """Measures the samples per second of a short run in which the last column has ten million ids."""
    steps = BIG_STEPS + BIG_WARM_UP
    last = list(VOCABULARIES)[-1]
    settings = settings_of(
        name, vocabularies=VOCABULARIES | {last: BIG_ROWS}, steps=BIG_STEPS, warm_up=BIG_WARM_UP, seed=turn
    )
    train, test = (part.slice(0, steps * settings.batch_size) for part in _start(folder))
    random = np.random.default_rng(turn)
    train, test = (
        part.set_column(
            part.schema.get_field_index(last), last, pa.array(random.integers(1, BIG_ROWS, len(part), dtype=np.int32))
        )
        for part in (train, test)
    )
    fit = BIG_VARIANTS[name][1](train, test, settings)
    return {"samples_per_second": fit.rows / fit.seconds, "peak_gib": peak_gib()}


MEASURES = {"epoch": epoch, "input": input_alone, "big_table": big_table}


def _start(folder: Path) -> tuple[pa.Table, pa.Table]:
    threads = int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(threads)
    pa.set_cpu_count(threads)
    return read(folder)


def peak_gib() -> float:
    """Returns the peak memory of this process in GiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


class Finished:
    """Finished measurements in a file: a line of JSON with the configuration, then one per measurement."""

    def __init__(self, file: Path, config: dict[str, Any]) -> None:
        self._file = file
        self.figures: dict[tuple[str, str, int], dict[str, float]] = {}
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        if lines and json.loads(lines[0]) == json.loads(json.dumps(config)):
            for part, name, turn, figures in map(json.loads, lines[1:]):
                self.figures[part, name, turn] = figures
        else:
            file.write_text(json.dumps(config) + "\n", encoding="utf-8")

    def add(self, part: str, name: str, turn: int, figures: dict[str, float]) -> None:
        """Adds one measurement to the file."""
        self.figures[part, name, turn] = figures
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps([part, name, turn, figures]) + "\n")


def summary(figures: dict[tuple[str, str, int], dict[str, float]]) -> dict[str, Any]:
    """Returns medians over the rounds, and the ratios of our rate to the others' within the rounds."""

    def values(part: str, name: str, key: str) -> dict[int, float]:
        return {turn: found[key] for (p, n, turn), found in sorted(figures.items()) if (p, n) == (part, name)}

    def medians(part: str, names: Iterator[str] | list[str], key: str, digits: int) -> dict[str, float]:
        found = {name: list(values(part, name, key).values()) for name in names}
        return {name: round(statistics.median(all_), digits) for name, all_ in found.items() if all_}

    def ratios(part: str, mine: str, other: str, key: str = "samples_per_second") -> list[float]:
        ours, theirs = values(part, mine, key), values(part, other, key)
        return [round(ours[turn] / theirs[turn], 3) for turn in ours if turn in theirs]

    rates, aucs = medians("epoch", list(VARIANTS), "samples_per_second", 0), medians("epoch", list(VARIANTS), "auc", 4)
    best = {name: _faster(name, rates, aucs) for name in RATES if name in rates}
    result: dict[str, Any] = {
        "samples_per_second": {name: rates[variant] for name, variant in best.items()},
        "auc": {name: aucs[variant] for name, variant in best.items()},
        "chosen": best,
    }
    if "ours" in best:
        result["ratios"] = {
            name: ratios("epoch", best["ours"], variant) for name, variant in best.items() if name != "ours"
        }
        result["samples_per_second_fp32"] = {
            name: rates[f"{name}_fp32"] for name in ("ours", "plain_pytorch") if f"{name}_fp32" in rates
        }
        result["ratios_fp32"] = ratios("epoch", "ours_fp32", "plain_pytorch_fp32")
    result["all_variants"] = {name: {"samples_per_second": rates[name], "auc": aucs[name]} for name in rates}
    result["input_rows_per_second"] = medians("input", ["ours"], "rows_per_second", 0).get("ours")
    result["big_table"] = medians("big_table", list(BIG_VARIANTS), "samples_per_second", 0) | {
        "ratios": {name: ratios("big_table", "ours", name) for name in BIG_VARIANTS if name != "ours"},
        "peak_gib": medians("big_table", list(BIG_VARIANTS), "peak_gib", 2),
        "rows": BIG_ROWS,
    }
    peak = result["big_table"]["peak_gib"].get("ours")
    result["big_table"]["within_6_gib"] = None if peak is None else peak <= 6
    return result


def _faster(name: str, rates: dict[str, float], aucs: dict[str, float]) -> str:
    """Returns the fastest setting of a variant among those that are as good as its best."""
    variants = [variant for variant in rates if VARIANTS[variant][0] == name]
    good = [variant for variant in variants if aucs[variant] >= max(aucs[other] for other in variants) - EQUAL_AUC]
    return max(good, key=lambda variant: rates[variant])


def described(settings: peers.Settings) -> dict[str, Any]:
    """Returns the configuration that all variants share."""
    return {
        "model": "DCN-V2, parallel",
        "embedding_dim": settings.embedding_dim,
        "cross_layers": settings.cross_layers,
        "hidden": list(settings.hidden),
        "batch_size": settings.batch_size,
        "epochs": 1,
        "big_table": {"rows": BIG_ROWS, "steps": BIG_STEPS, "warm_up": BIG_WARM_UP},
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
