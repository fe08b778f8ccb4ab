"""Runs every path of models/ that may use a GPU on random data, there and on the CPU, and compares the two.

python -m benchmarks.gpu_check [--device cuda|cpu] [--small] [PATH …]

Prints one JSON object: per path ok or the error, seconds on the device and on the CPU, the speedup of the device, and
the largest difference between the results. Without a GPU it says so and exits with 0. With `--device cpu` the CPU is
compared with itself, which shows that every path runs. Needs neither Ray nor a network.

Every device has a separate process, in which the models choose their device as in a run; the CPU's process sees no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.gpu_paths import FULL, PATHS, SMALL, Setting
from benchmarks.machine import machine

# The largest difference that passes, see `compare`. A fit accumulates rounding, and bfloat16 has few digits.
TOLERANCE = 0.02
LOOSE, LOOSE_TOLERANCE = ("fit_", "bf16_"), 0.1  # prefixes of results, and their tolerance


class Measured(NamedTuple):
    """The result of a path on one device."""

    seconds: float = 0.0  # of the second call, when all is loaded
    error: str | None = None
    arrays: dict[str, np.ndarray] = {}  # noqa: RUF012 - never changed


def main() -> None:
    """Prints the comparison, and exits with 1 if a path is not ok."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", metavar="PATH", help=f"of {', '.join(PATHS)}; all unless named")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes for a test, which say nothing about speed")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # this process measures and writes here
    arguments = parser.parse_args()
    names = arguments.paths or list(PATHS)
    if unknown := [name for name in names if name not in PATHS]:
        parser.error(f"there is no path {unknown[0]}: choose from {', '.join(PATHS)}")
    if arguments.measure:
        write(Path(arguments.measure), measure(names, arguments.device, small=arguments.small))
        return
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({**machine(), "gpu": None, "note": "There is no GPU here: nothing was checked."}, indent=2))
        return
    device, cpu = (_in_process(names, name, arguments.small) for name in (arguments.device, "cpu"))
    found = {name: compare(device[name], cpu[name]) for name in names}
    gpu = torch.cuda.get_device_name() if arguments.device == "cuda" else None
    print(json.dumps({**machine(), "torch": torch.__version__, "gpu": gpu, "paths": found}, indent=2))
    sys.exit(0 if all(result["ok"] for result in found.values()) else 1)


def measure(names: Iterable[str], device: str, *, small: bool) -> dict[str, Measured]:
    """Runs paths on a device, twice; an error in one does not affect the others."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(torch.device(device), Path(folder), SMALL if small else FULL)
        for name in names:
            print(f"{device}: {name}", file=sys.stderr, flush=True)
            try:
                PATHS[name](setting)
                _wait(device)
                began = time.perf_counter()
                found = PATHS[name](setting)
                _wait(device)
                seconds = time.perf_counter() - began
                results[name] = Measured(seconds, None, {key: _array(value) for key, value in found.items()})
            except Exception as error:  # noqa: BLE001 - any error is a result of the check
                place = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{place.filename}:{place.lineno}"
                results[name] = Measured(error=f"{type(error).__name__}: {error} ({where})"[:500])
    return results


def compare(device: Measured, cpu: Measured) -> dict[str, Any]:
    """Compares one path: `ok`, `error`, `seconds`, `cpu_seconds`, `times_as_fast`, `difference` and the result with it.

    The difference of floats is relative to the largest absolute value on the CPU; that of integers is the share of
    different ones.
    """
    if error := device.error or (cpu.error and f"on the CPU: {cpu.error}"):
        return {"ok": False, "error": error}
    differences = {name: _difference(device.arrays[name], value) for name, value in cpu.arrays.items()}
    worst = max(differences, key=lambda name: differences[name])
    within = (v <= (LOOSE_TOLERANCE if name.startswith(LOOSE) else TOLERANCE) for name, v in differences.items())
    return {
        "ok": all(within),
        "error": None,
        "seconds": round(device.seconds, 4),
        "cpu_seconds": round(cpu.seconds, 4),
        "times_as_fast": round(cpu.seconds / device.seconds, 2),
        "difference": differences[worst],
        "largest_in": worst,
    }


def write(folder: Path, results: dict[str, Measured]) -> None:
    """Writes results as `results.json` and `arrays.npz`."""
    arrays = {f"{name}/{key}": value for name, one in results.items() for key, value in one.arrays.items()}
    np.savez(folder / "arrays.npz", allow_pickle=False, **arrays)
    summary = {name: {"seconds": one.seconds, "error": one.error} for name, one in results.items()}
    (folder / "results.json").write_text(json.dumps(summary), encoding="utf-8")


def read(folder: Path) -> dict[str, Measured]:
    """Reads the results that `write` wrote."""
    summary = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    with np.load(folder / "arrays.npz") as arrays:
        return {
            name: Measured(
                **one, arrays={key.split("/")[1]: arrays[key] for key in arrays.files if key.split("/")[0] == name}
            )
            for name, one in summary.items()
        }


def _in_process(names: list[str], device: str, small: bool) -> dict[str, Measured]:
    """Measures in a separate process, which sees no GPU if the device is the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.gpu_check", *names, "--device", device, "--measure", folder]
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
        subprocess.run([*command, *["--small"][: int(small)]], check=True, env={**os.environ, **hidden})  # noqa: S603
        return read(Path(folder))


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _array(value: torch.Tensor) -> np.ndarray:
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()


def _difference(found: np.ndarray, wanted: np.ndarray) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    if not np.issubdtype(wanted.dtype, np.floating):
        return float((found != wanted).mean())
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-12))


if __name__ == "__main__":
    main()
