"""Breaks runs on a cluster of three nodes on this machine, one kind of fault at a time, and counts their rows.

python -m benchmarks.faults --fault NAME --times N --out FILE [--data DIR] [--items 200] [--users 60]
python -m benchmarks.faults --table FILE...

Starts Ray's `cluster_utils.Cluster` (a head and two workers, processes of one machine), runs a definition on it
undisturbed, then N times with the fault, each in a run directory of its own, and writes one JSON object per try to the
list in FILE, behind what is there. A node dies by `remove_node(allow_graceful=False)`, a driver by SIGKILL, both once
the stage has written something, at a moment drawn by the try's number. After a death of the driver or the head the same
command is given again. `--table` prints the table of docs/reliability.md.

A try passes if its tables hold the rows of the undisturbed run, none fewer and none twice, and if no file of the run
changed for at most 120 seconds. One whose stage had ended before the fault came, or that should have spilled and did
not, is `missed` and counts as no try: another is made, up to N in all. Exit status 1 if one failed, or too many were
missed. `disk-full` mounts a file system in memory, as root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
import yaml
from ray.cluster_utils import Cluster

from workflows.catalogs.synthetic.sample import write_sample

TABLES = ("catalog/items", "log", "items", "sids", "features/train", "features/valid", "features/test")
WAIT_S, LOOK_S, LIMIT_S = 120.0, 0.05, 1_800.0
MIB = 1 << 20
STORE = {"enough": 300 * MIB, "little": 100 * MIB}  # of each node; Ray gives none less than 75
LITTLE_DISK = 2  # MiB
STAGES: dict[str, Any] = {
    "ingest": {"max_reject_share": 0.5, "partition_events": 1_000},
    "interpret": {"commit_rows": 4, "cache": False},
    "project": None,
    "quantize": {"method": "rqkmeans", "codebook_sizes": [16, 16]},
    "features": None,
    "rank": {"epochs": 4, "workers": 2},
}


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        stage: it strikes in; also the last stage that is run.
        dies: what is killed; None if something runs short.
        how: for the table.
        joins: a new node takes the place of one that died.
        short: what runs short.
    """

    stage: str
    dies: Literal["worker", "driver", "head"] | None
    how: str
    joins: bool = True
    short: Literal["store", "disk"] | None = None


FAULTS = {
    "worker-in-ingest": Fault("ingest", "worker", "a worker node is killed while ingest deals events; another joins"),
    "worker-in-interpret": Fault("interpret", "worker", "a worker node is killed during interpret; another joins"),
    "worker-in-features": Fault("features", "worker", "a worker node is killed during features; another joins"),
    "worker-in-rank": Fault("rank", "worker", "a worker node is killed during the ranker's training; another joins"),
    "worker-in-rank-fewer": Fault("rank", "worker", "the same, and no other joins", joins=False),
    "driver": Fault("interpret", "driver", "the driver is killed during interpret, and the command given again"),
    "head": Fault("interpret", "head", "the head is killed during interpret, and the command given again"),
    "spill": Fault("features", None, "object stores of 100 MiB a node, so that objects are spilled", short="store"),
    "disk-full": Fault("interpret", None, "the disk of the run is full; the command again with room", short="disk"),
}


def main() -> int:
    """Tries a fault, or prints the table of what was tried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", choices=list(FAULTS))
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file of the list of tries")
    parser.add_argument("--data", type=Path, default=Path("faults"), help="folder for the catalogue and the runs")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--users", type=int, default=60)
    parser.add_argument("--table", type=Path, nargs="+", help="print the table of these files")
    given = parser.parse_args()
    if given.table:
        print(table([one for file in given.table for one in json.loads(file.read_text())]))
        return 0
    if not given.fault or not given.out:
        parser.error("give --fault and --out, or --table")
    fault, place = FAULTS[given.fault], given.data.absolute()
    place.mkdir(parents=True, exist_ok=True)
    catalog = place / f"catalog-{given.items}-{given.users}"
    if not catalog.exists():
        write_sample(str(catalog), items=given.items, users=given.users)
    stages = {name: settings for name, settings in STAGES.items() if name in _until(fault.stage)}
    definition = place / f"{given.fault}.yaml"
    definition.write_text(yaml.safe_dump({"name": "faults", "catalog": str(catalog), "stages": stages}))
    tries = json.loads(given.out.read_text()) if given.out.exists() else []
    undisturbed = place / f"undisturbed-{given.fault}-{os.getpid()}"
    with Nodes(STORE["enough"]) as nodes:
        Run(definition, undisturbed, nodes).to_end()
    states = Counter[str]()
    for number in range(2 * given.times):
        run = place / f"{given.fault}-{os.getpid()}-{number}"
        one = {"fault": given.fault, **attempt(fault, definition, run, undisturbed, chance=random.Random(number))}
        print(json.dumps(one), flush=True)
        tries.append(one)
        given.out.write_text(json.dumps(tries, indent=2) + "\n", encoding="utf-8")
        states[one["state"]] += 1
        if states.total() - states["missed"] == given.times:
            break
    return int(states["passed"] != given.times)


def _until(stage: str) -> list[str]:
    names = list(STAGES)
    if stage == "features":  # needs no semantic IDs here
        return ["ingest", "interpret", "project", "features"]
    return names[: names.index(stage) + 1]


class Nodes:
    """A head and two workers, each with two CPUs and an object store of `store` bytes."""

    def __init__(self, store: int) -> None:
        self.store = store
        self._cluster: Cluster | None = None

    def __enter__(self) -> Nodes:
        args = {"num_cpus": 2, "object_store_memory": self.store, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=args)
        for _ in range(2):
            self.join()
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.shutdown()

    @property
    def cluster(self) -> Any:
        """Returns Ray's cluster."""
        return self._cluster

    def join(self) -> None:
        """Adds a worker."""
        self.cluster.add_node(num_cpus=2, object_store_memory=self.store)

    def lose(self, chance: random.Random) -> None:
        """Kills all processes of a worker."""
        workers = sorted(self.cluster.worker_nodes, key=lambda node: node.unique_id)
        self.cluster.remove_node(chance.choice(workers), allow_graceful=False)

    def restart(self) -> None:
        """Kills the head, and with it the cluster; another takes its place."""
        self.cluster.remove_node(self.cluster.head_node, allow_graceful=False)
        self.cluster.shutdown()
        self.__enter__()

    def spilled(self) -> int:
        """Returns the bytes that object stores have written to disk."""
        session = Path(self.cluster.head_node.get_session_dir_path())
        return sum(_size(file) for folder in session.glob("ray_spilled_objects*") for file in _existing(folder))


class Run:
    """A command that brings a run directory up to date, watched for progress."""

    def __init__(self, definition: Path, folder: Path, nodes: Nodes) -> None:
        self.folder, self.longest_wait_s, self.said, self.spilled = folder, 0.0, "", 0
        self._command = [sys.executable, "-m", "workflows", "run", str(definition), "--run-dir", str(folder)]
        self._nodes = nodes
        self._changed_s = time.monotonic()
        self._seen: tuple[int, int] = (0, 0)

    def start(self) -> subprocess.Popen[str]:
        """Starts the command; what it says goes to a file beside the run."""
        self._changed_s = time.monotonic()
        with self.folder.with_suffix(".log").open("a") as log:
            return subprocess.Popen(  # noqa: S603 - our own command
                [*self._command, "--address", self._nodes.cluster.address], stdout=log, stderr=log, text=True
            )

    def look(self) -> None:
        """Notes how long nothing has changed in the run.

        Raises:
            TimeoutError: for too long.
        """
        found = [_changed(file) for file in _existing(self.folder)]
        seen, now = (len(found), max(found, default=0)), time.monotonic()
        if seen != self._seen:
            self._seen, self._changed_s = seen, now
        self.longest_wait_s = max(self.longest_wait_s, now - self._changed_s)
        if self.longest_wait_s > WAIT_S:
            raise TimeoutError(f"nothing changed for {self.longest_wait_s:.0f} s")

    def follow(self, process: subprocess.Popen[str], *, until_in: str | None = None) -> bool:
        """Waits for the end, or until a stage has written something of its own; tells whether it came to that."""
        end = time.monotonic() + LIMIT_S
        while process.poll() is None:
            self.look()
            self.spilled = max(self.spilled, self._nodes.spilled())
            if until_in and any(self.folder.glob(f"checkpoints/{until_in}/**/*.*")):
                return True
            if time.monotonic() > end:
                raise TimeoutError(f"the run did not end in {LIMIT_S:.0f} s")
            time.sleep(LOOK_S)
        return False

    def to_end(self) -> None:
        """Runs to the end.

        Raises:
            RuntimeError: the command failed.
        """
        process = self.start()
        with _ended(process):
            self.follow(process)
        self.check(process)

    def check(self, process: subprocess.Popen[str]) -> None:
        """Raises a RuntimeError with the last lines of a command that failed."""
        if process.returncode:
            raise RuntimeError(self.folder.with_suffix(".log").read_text()[-1_000:])


def attempt(
    fault: Fault, definition: Path, folder: Path, undisturbed: Path, *, chance: random.Random
) -> dict[str, Any]:
    """Runs with a fault and returns how it went: state, rows before and after, lost, twice, the longest wait."""
    began, missed = time.monotonic(), False
    with Nodes(STORE["little" if fault.short == "store" else "enough"]) as nodes:
        run = Run(definition, folder, nodes)
        try:
            if fault.short == "disk":
                _fill_disk(run)
            elif fault.dies:
                missed = not _strike(fault, run, nodes, chance)
            else:
                run.to_end()
                missed = run.spilled == 0
            error = None
        except (TimeoutError, RuntimeError) as failure:
            error = " ".join(str(failure).split())
        seconds = round(time.monotonic() - began, 1)
        counted = rows_of(undisturbed), rows_of(folder)
        if fault.short == "disk":
            subprocess.run(["umount", str(folder)], check=False)  # noqa: S603, S607
    before, after = counted
    lost, twice = (sum((one - other).values()) for one, other in ((before, after), (after, before)))
    state = "failed" if error or lost or twice else "missed" if missed else "passed"
    return {
        "state": state,
        "error": error,
        "rows_before": before.total(),
        "rows_after": after.total(),
        "lost": lost,
        "twice": twice,
        "longest_wait_s": round(run.longest_wait_s, 1),
        "spilled_mib": round(run.spilled / MIB, 1),
        "seconds": seconds,
    }


def _strike(fault: Fault, run: Run, nodes: Nodes, chance: random.Random) -> bool:
    """Kills what dies once the stage is at work, and brings the run to its end; tells whether the stage was met."""
    process = run.start()
    with _ended(process):
        met = run.follow(process, until_in=fault.stage)
        time.sleep(chance.random() if met else 0)
        met = met and process.poll() is None
        if met and fault.dies == "worker":
            nodes.lose(chance)
            if fault.joins:
                nodes.join()
        elif met:
            process.send_signal(signal.SIGKILL)
            process.wait()
            if fault.dies == "head":
                nodes.restart()
        if process.poll() is None:
            run.follow(process)
    if met and fault.dies != "worker":
        run.to_end()
    else:
        run.check(process)
    return met


def _fill_disk(run: Run) -> None:
    """Runs on a file system that is too small, which has to end in one sentence, and again on one with room."""
    run.folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={LITTLE_DISK}m", "faults", str(run.folder)]
    subprocess.run(mount, check=True)  # noqa: S603
    process = run.start()
    with _ended(process):
        run.follow(process)
    said = run.folder.with_suffix(".log").read_text().strip().splitlines()
    if process.returncode != 2 or "is full" not in said[-1]:
        raise RuntimeError(f"status {process.returncode} and no sentence about a full disk: {said[-1:]}")
    subprocess.run(["mount", "-o", "remount,size=1g", str(run.folder)], check=True)  # noqa: S603, S607
    run.to_end()


@contextlib.contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kills a process that is left when the block ends by an error."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def rows_of(folder: Path) -> Counter[str]:
    """Returns how often each row stands in the tables of a run, in whatever order and files."""
    found: Counter[str] = Counter()
    for name in TABLES:
        for file in (folder / name).rglob("*.parquet"):
            found.update(f"{name} {row}" for row in map(str, pq.read_table(file, partitioning=None).to_pylist()))
    return found


def _existing(folder: Path) -> Iterator[Path]:
    """Yields the files of a folder to which others write meanwhile; one may be gone when it is opened."""
    for top, _, names in os.walk(folder):
        yield from (Path(top, name) for name in names)


def _size(file: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_size
    return 0


def _changed(file: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_mtime_ns
    return 0


def table(tries: Sequence[dict[str, Any]]) -> str:
    """Returns the Markdown table of what was tried; a kind of fault that was not has no row."""
    lines = [
        "| fault | tried | passed | rows before | rows after | lost | twice | longest wait, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, fault in FAULTS.items():
        if counted := [one for one in tries if one["fault"] == name and one["state"] != "missed"]:
            passed = sum(one["state"] == "passed" for one in counted)
            sums = [sum(one[key] for one in counted) for key in ("rows_before", "rows_after", "lost", "twice")]
            cells = [fault.how, len(counted), passed, *(f"{value:,}" for value in sums)]
            lines.append("| " + " | ".join(map(str, [*cells, max(one["longest_wait_s"] for one in counted)])) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
