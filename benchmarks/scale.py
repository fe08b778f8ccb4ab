"""Measures memory and speed of a whole run on a generated log of any size.

python -m benchmarks.scale --data DIR --out FILE [--events 4000000] [--items 10000] [--driver-limit-mib 1536]

Writes into DIR a labelled catalogue with given embeddings of 64 dimensions (streamed, so that its size does not matter
here), and runs ingest, interpret, project, quantize (rqkmeans), features, rank (one epoch) and evaluate on it as
`tesserec run` does, on this machine, with an object store of 1 GiB. Five times a second it reads what every process of
the run has in memory, from /proc/PID/smaps_rollup.

driver_peak_mib: private memory (Pss_Anon) of the process that runs the definition; process_peak_mib: of the largest
other one; total_peak_mib: the sum over all processes, shared memory (Pss_Shmem) with it; store_mib: shared memory
alone; spilled_mib: what Ray wrote to disk because the object store was full. Files that are mapped count nowhere: the
kernel drops their pages when it needs room.

stages: seconds of each, events_per_second, and driver_peak_mib; input_rows_per_second: events by the seconds of ingest
and features together. Ray is started before the first stage; its seconds stand beside.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.machine import machine
from workflows.distributed import cluster
from workflows.distributed.pools import READER_CPUS
from workflows.engine.definition import load
from workflows.engine.runner import execute

WIDTH, TASTES = 64, 8
ROWS = 1_000_000  # events of a row group
EVENTS_PER_USER = 40
START_US, DAYS = 1_735_689_600_000_000, 90
STORE_BYTES = 1 << 30
LOOK_S = 0.2
FIELDS = ("Pss_Anon", "Pss_Shmem")
STAGES: dict[str, Any] = {
    "ingest": None,
    "interpret": None,
    "project": None,
    "quantize": {"method": "rqkmeans", "codebook_sizes": [256, 256, 256]},
    "features": None,
    "rank": {"epochs": 1},
    "evaluate": None,
}


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("scale"), help="folder for catalogues and runs")
    parser.add_argument("--out", type=Path, help="file for the JSON object, beside stdout")
    parser.add_argument("--events", type=int, default=4_000_000)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--until", default="evaluate", choices=list(STAGES), help="last stage")
    parser.add_argument(
        "--driver-limit-mib", type=int, help="memory that the driver alone may have (cgroup v1, as root)"
    )
    parser.add_argument("--inside", nargs=2, metavar=("WORKFLOW", "RUN"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        definition, run = arguments.inside
        inside(definition, run, arguments.driver_limit_mib)
        return
    name = f"{arguments.events}-{arguments.items}"
    catalog = arguments.data / f"catalog-{name}"
    if not catalog.exists():
        write_catalog(catalog, arguments.events, arguments.items, seed=0)
    result = {**machine(), "events": arguments.events, "items": arguments.items}
    result |= measure(
        catalog, arguments.data / f"run-{name}-{os.getpid()}", arguments.until, arguments.driver_limit_mib
    )
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


def write_catalog(folder: Path, events: int, items: int, *, seed: int) -> None:
    """Writes items with embeddings, and a log in which some items are popular, and those near a user's taste liked."""
    random = np.random.default_rng(seed)
    part = folder.with_suffix(".part")
    part.mkdir(parents=True, exist_ok=True)
    looks = random.normal(size=(items, TASTES)).astype(np.float32)
    spread = random.normal(size=(TASTES, WIDTH)).astype(np.float32)
    names = pa.array([f"item-{number:07d}" for number in range(items)])
    with pq.ParquetWriter(part / "items.parquet", _item_schema(), compression="zstd") as writer:
        for start in range(0, items, 65_536):
            own = looks[start : start + 65_536]
            vectors = own @ spread + 0.3 * random.normal(size=(len(own), WIDTH)).astype(np.float32)
            ids = names.slice(start, len(own))
            columns = [ids, ids, pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), WIDTH)]
            writer.write_table(pa.Table.from_arrays(columns, schema=_item_schema()))
    users = pa.array([f"user-{number:08d}" for number in range(max(events // EVENTS_PER_USER, 10))])
    with pq.ParquetWriter(part / "interactions.parquet", _log_schema(), compression="zstd") as writer:
        for start in range(0, events, ROWS):
            writer.write_table(_log_rows(random, min(ROWS, events - start), users, names, looks))
    part.rename(folder)


def _item_schema() -> pa.Schema:
    return pa.schema([("item_id", pa.string()), ("title", pa.string()), ("embedding", pa.list_(pa.float32(), WIDTH))])


def _log_schema() -> pa.Schema:
    return pa.schema(
        [
            ("user_id", pa.string()),
            ("item_id", pa.string()),
            ("timestamp", pa.timestamp("us", "UTC")),
            ("label", pa.float32()),
            ("position", pa.float32()),
        ]
    )


def _log_rows(random: np.random.Generator, rows: int, users: pa.Array, names: pa.Array, looks: np.ndarray) -> pa.Table:
    user = random.integers(0, len(users), rows)
    item = (len(names) * random.random(rows) ** 3).astype(np.int64)  # the first tenth holds nearly half of the events
    taste = np.random.default_rng(1).normal(size=(4_096, TASTES)).astype(np.float32)[user % 4_096]
    liking = (taste * looks[item]).sum(axis=1) / np.sqrt(TASTES)
    label = random.random(rows) < 1 / (1 + np.exp(1.5 - liking))
    time_us = START_US + random.integers(0, DAYS * 86_400_000_000, rows)
    return pa.Table.from_arrays(
        [
            users.take(pa.array(user)),
            names.take(pa.array(item)),
            pa.array(time_us, pa.timestamp("us", "UTC")),
            pa.array(label.astype(np.float32)),
            pa.array(random.integers(1, 20, rows).astype(np.float32)),
        ],
        schema=_log_schema(),
    )


def measure(catalog: Path, run: Path, until: str, limit_mib: int | None) -> dict[str, Any]:
    """Runs the definition and watches its processes."""
    names = list(STAGES)
    stages = {name: STAGES[name] for name in names[: names.index(until) + 1]}
    run.parent.mkdir(parents=True, exist_ok=True)
    definition = run.with_suffix(".yaml")
    definition.write_text(yaml.safe_dump({"name": "scale", "catalog": str(catalog), "stages": stages}, sort_keys=False))
    settings = {
        "RAY_DEFAULT_OBJECT_STORE_MEMORY_PROPORTION": "0.04",
        "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(STORE_BYTES),
    }
    command = [sys.executable, "-m", "benchmarks.scale", "--inside", str(definition), str(run)]
    command += [] if limit_mib is None else ["--driver-limit-mib", str(limit_mib)]
    with run.with_suffix(".log").open("w") as log:
        driver = subprocess.Popen(  # noqa: S603 - our own command
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **settings},
        )
        peaks, of_stages = watch(driver, run, Path(os.environ.get("RAY_TMPDIR", "/tmp")))  # noqa: S108 - Ray's
    if driver.returncode:
        raise SystemExit(run.with_suffix(".log").read_text()[-2_000:])
    manifest = json.loads((run / "manifest.json").read_text())["stages"]
    seconds = {name: entry["seconds"] for name, entry in manifest.items()}
    events = manifest["ingest"]["metrics"]["interactions"]["rows_in"]
    into = seconds["ingest"] + seconds.get("features", 0.0)
    return {
        **peaks,
        "stages": {
            name: {
                "seconds": took,
                "events_per_second": round(events / took),
                "driver_peak_mib": of_stages.get(name),
            }
            for name, took in seconds.items()
        },
        "input_rows_per_second": round(events / into),
        "ray_start_seconds": json.loads(run.with_suffix(".log").read_text().splitlines()[0])["ray_start_seconds"],
    }


def inside(definition: str, run: str, limit_mib: int | None) -> None:
    """Starts Ray, says how long that took, and brings a run up to date with a definition, in so much memory."""
    began = time.monotonic()
    cluster.connect("local", len(os.sched_getaffinity(0)) + READER_CPUS)
    print(json.dumps({"ray_start_seconds": round(time.monotonic() - began, 1)}), flush=True)
    if limit_mib is not None:
        limit(limit_mib)
    execute(load(definition, []), run)


def limit(mib: int) -> None:
    """Bounds the memory of this process; those that it has started are left alone."""
    group = Path(f"/sys/fs/cgroup/memory/scale-{os.getpid()}")
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(mib << 20))
    (group / "cgroup.procs").write_text(str(os.getpid()))


def watch(driver: subprocess.Popen[bytes], run: Path, temporary: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Reads the memory of a process and of all that it has started until it ends.

    Returns:
        Peaks in MiB, and those of the process itself by stage.
    """
    of_stages: dict[str, float] = {}
    peaks = dict.fromkeys(("driver_peak_mib", "process_peak_mib", "total_peak_mib", "store_mib", "spilled_mib"), 0.0)
    while driver.poll() is None:
        held = {pid: memory(pid) for pid in family(driver.pid)}
        anonymous = {pid: values[0] for pid, values in held.items()}
        shared = sum(values[1] for values in held.values())
        found = {
            "driver_peak_mib": anonymous.get(driver.pid, 0.0),
            "process_peak_mib": max((value for pid, value in anonymous.items() if pid != driver.pid), default=0.0),
            "total_peak_mib": sum(anonymous.values()) + shared,
            "store_mib": shared,
            "spilled_mib": sum(file.stat().st_size for file in spilled(temporary)) / 2**20,
        }
        peaks = {name: round(max(value, found[name]), 1) for name, value in peaks.items()}
        stage = running(run)
        of_stages[stage] = round(max(of_stages.get(stage, 0.0), found["driver_peak_mib"]), 1)
        time.sleep(LOOK_S)
    return peaks, of_stages


def running(run: Path) -> str:
    """Returns the stage that a run is at; empty between stages and before the first one."""
    try:
        stages = json.loads((run / "manifest.json").read_text())["stages"]
    except (OSError, ValueError):
        return ""
    return next((name for name, entry in stages.items() if entry["state"] == "running"), "")


def spilled(temporary: Path) -> Iterator[Path]:
    """Yields the files that Ray has spilled to under its newest session."""
    for folder in temporary.glob("ray/session_latest/ray_spilled_objects*"):
        yield from (file for file in folder.rglob("*") if file.is_file())


def family(root: int) -> list[int]:
    """Returns a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):  # it has ended
                continue
            children.setdefault(parent, []).append(int(folder.name))
    found, left = [], [root]
    while left:
        found.append(left.pop())
        left += children.get(found[-1], [])
    return found


def memory(pid: int) -> tuple[float, float]:
    """Returns Pss_Anon and Pss_Shmem of a process in MiB, zeros once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    found = {
        name: int(rest.split()[0]) / 1024 for name, _, rest in (line.partition(":") for line in lines) if name in FIELDS
    }
    return found.get(FIELDS[0], 0.0), found.get(FIELDS[1], 0.0)


if __name__ == "__main__":
    main()
