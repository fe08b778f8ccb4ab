"""Measures the overhead of the stream: Ray Data against bare loops and Daft, on the same cores.

    python -m benchmarks.interpret --data DIR [--json] [--out FILE]

Every variant (one way to run the operators) is a separate process that calls the same operator objects on the same
batches and writes the same columns; the variants alternate for `--rounds` rounds. A rate is measured between 10 % and
90 % of the rows; a ratio is the median of the ratios within the rounds. Daft runs in this environment or, if it is
missing, in `.venv-bench` (`make bench-setup`).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil

from benchmarks.machine import machine
from workflows.catalogs.movielens import import_movielens

REPOSITORY = Path(__file__).parent.parent
VARIANTS = ("ray", "loop_threads", "loop_processes", "daft")


def main() -> None:
    """Runs the variants alternately and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of movielens-posters")
    parser.add_argument("--items", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, choices=range(1, 100), metavar="N", default=2)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="which variants take turns")
    parser.add_argument(
        "--memory-items", type=int, default=8_000, help="rows of the second memory run; 0 leaves both out"
    )
    parser.add_argument("--out", help="file for the JSON object, beside stdout")
    parser.add_argument("--json", action="store_true", help="nothing but the JSON object on stdout")
    arguments = parser.parse_args()
    say = (lambda line: None) if arguments.json else (lambda line: print(line, file=sys.stderr, flush=True))
    with tempfile.TemporaryDirectory(prefix="tesserec-bench-") as folder:
        variants = arguments.variants.split(",")
        catalog = prepare(arguments.data, Path(folder) / "catalog", arguments.items)
        rounds = [
            {variant: run_variant(variant, catalog, Path(folder) / f"{variant}-{i}", say) for variant in variants}
            for i in range(arguments.rounds)
        ]
        memory = {}
        for rows in (arguments.items, arguments.memory_items) if arguments.memory_items else ():
            many = prepare(arguments.data, Path(folder) / f"catalog-{rows}", rows)
            memory[rows] = (run_variant("ray_uncached", many, Path(folder) / f"memory-{rows}", say, memory=True) or {})[
                "peak_mib"
            ]  # repeats would be cached
    result = {"items": arguments.items, **machine(), **compare(rounds), **compare_memory(memory), "rounds": rounds}
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        Path(arguments.out).write_text(text + "\n", encoding="utf-8")


def compare(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns medians over the rounds of the rates, and of the ratios within a round."""

    def rate(variant: str, key: str = "rows_per_second") -> list[float]:
        return [one[variant][key] for one in rounds if variant in one and one[variant] is not None]

    def ratio(other: Callable[[dict[str, Any]], float], key: str) -> float | None:
        found = [one["ray"][key] / other(one) for one in rounds if "ray" in one]
        return round(statistics.median(found), 3) if found else None

    def spread(other: Callable[[dict[str, Any]], float], key: str) -> list[float]:
        found = [one["ray"][key] / other(one) for one in rounds if "ray" in one]
        return [round(min(found), 3), round(max(found), 3)]

    def better_loop(key: str) -> Callable[[dict[str, Any]], float]:
        return lambda one: max(one[variant][key] for variant in one if variant.startswith("loop"))

    found: dict[str, Any] = {}
    for variant in VARIANTS:
        if rate(variant):
            found[f"{variant}_rows_per_second"] = round(statistics.median(rate(variant)), 2)
    if any(variant.startswith("loop") for variant in rounds[0]):
        found["loop_rows_per_second"] = round(
            statistics.median([better_loop("rows_per_second")(one) for one in rounds]), 2
        )
        found["ratio_loop"] = ratio(better_loop("rows_per_second"), "rows_per_second")
        found["ratio_loop_range"] = spread(better_loop("rows_per_second"), "rows_per_second")
        found["ratio_whole_run"] = ratio(better_loop("whole_rows_per_second"), "whole_rows_per_second")
    if rate("daft"):
        found["ratio_daft"] = ratio(lambda one: one["daft"]["rows_per_second"], "rows_per_second")
        found["ratio_daft_range"] = spread(lambda one: one["daft"]["rows_per_second"], "rows_per_second")
        found["ratio_daft_whole_run"] = ratio(lambda one: one["daft"]["whole_rows_per_second"], "whole_rows_per_second")
    return found


def compare_memory(peaks: dict[int, float]) -> dict[str, Any]:
    """Returns the memory peaks by number of rows, and the ratio of the largest run's to the smallest's."""
    if not peaks:
        return {}
    return {
        "peak_mib": max(peaks.values()),
        "peak_mib_by_rows": peaks,
        "peak_growth": round(peaks[max(peaks)] / peaks[min(peaks)], 3),
    }


def prepare(data: str, folder: Path, items: int) -> str:
    """Writes a catalogue of `items` posters without a log; if there are too few, they repeat under new ids."""
    import_movielens(data, str(folder))
    table = pl.read_parquet(folder / "items.parquet")
    copies = [table.with_columns(pl.col("item_id") + f"-{i}") for i in range(-(-items // table.height))]
    pl.concat(copies).head(items).write_parquet(folder / "items.parquet")
    (folder / "interactions.parquet").unlink()
    return str(folder)


def run_variant(
    variant: str, catalog: str, place: Path, say: Callable[[str], None], *, memory: bool = False
) -> dict[str, Any] | None:
    """Runs one variant in a separate process; returns None if its environment is missing."""
    python = sys.executable
    if variant == "daft" and importlib.util.find_spec("daft") is None:
        python = str(REPOSITORY / ".venv-bench" / "bin" / "python")
        if not Path(python).exists():
            say("daft is not installed: run `make bench-setup`")
            return None
    place.mkdir()
    command = [python, "-m", "benchmarks.interpret_variants", variant, catalog, str(place)]
    began = time.time()
    with (place / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log)  # noqa: S603 - our own module
        peak = peak_pss_mib(process) if memory else None
        if process.wait():
            raise SystemExit(f"{variant} failed:\n{(place / 'log').read_text()[-3000:]}")
    ended = time.time()
    marks = np.array(json.loads((place / "marks.json").read_text()), dtype=np.float64)
    rows = marks[-1, 1]
    low, high = np.interp([0.1 * rows, 0.9 * rows], marks[:, 1], marks[:, 0])
    found = {
        "rows": int(rows),
        "rows_per_second": round(float(0.8 * rows / (high - low)), 2),
        "whole_rows_per_second": round(float(rows / (ended - began)), 2),
        "seconds": round(ended - began, 1),
        "seconds_to_first": round(float(marks[0, 0] - began), 1),
        "peak_mib": peak,
    }
    say(f"{variant}: {found}")
    return found


def peak_pss_mib(process: subprocess.Popen[bytes]) -> float:
    """Returns the peak memory of a process and all its descendants in MiB, polled once a second.

    Proportional set size counts a page that several processes share once.
    """
    peak, root = 0.0, psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        with contextlib.suppress(psutil.Error):
            for one in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    total += one.memory_full_info().pss
        peak = max(peak, total / 2**20)
        time.sleep(1.0)
    return round(peak, 1)


if __name__ == "__main__":
    main()
