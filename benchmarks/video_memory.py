"""Measures the peak memory of the processes that decode and caption videos, on a cluster of two nodes.

python -m benchmarks.video_memory --data FOLDER [--items 40 160] [--out FILE]

FOLDER holds videos, which the items of a catalogue have in turns. For each number of items a Ray cluster of its own
(processes of this machine) has a head and a worker, both with two CPUs; `tesserec run` takes the catalogue through
ingest and interpret there, and keeps nothing from a cache. Every actor's peak is that of its resident memory, as the
kernel counts it. Memory is bounded if it does not grow with the number of videos.

    peak_mib      by number of items: the peak of each actor, by node
    growth        largest peak of the most items over that of the fewest
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import yaml
from ray.cluster_utils import Cluster

from benchmarks.machine import machine

STORE = 200 << 20  # bytes of a node's object store
ENDINGS = (".mp4", ".mov", ".webm", ".mkv")


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of videos")
    parser.add_argument("--items", type=int, nargs="+", default=[40, 160])
    parser.add_argument("--out", type=Path, help="file for the JSON object, beside stdout")
    given = parser.parse_args()
    videos = sorted(file for file in given.data.iterdir() if file.suffix in ENDINGS)
    if not videos:
        parser.error(f"{given.data} holds no video ({', '.join(ENDINGS)})")
    peaks = {}
    for items in sorted(given.items):
        with tempfile.TemporaryDirectory() as folder:
            peaks[items] = measure(Path(folder), videos, items)
    largest = [max(peak for node in found.values() for peak in node) for found in peaks.values()]
    result = {**machine(), "videos": len(videos), "peak_mib": peaks, "growth": largest[-1] / largest[0]}
    text = json.dumps(result, indent=2)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


def measure(folder: Path, videos: list[Path], items: int) -> dict[str, list[float]]:
    """Runs a catalogue of videos and returns the peaks of all actors in MiB, by node."""
    catalog = folder / "catalog"
    (catalog / "media").mkdir(parents=True)
    for video in videos:
        shutil.copy(video, catalog / "media")
    media = [f"media/{videos[item % len(videos)].name}" for item in range(items)]
    pl.DataFrame({"item_id": [f"video {item}" for item in range(items)], "media": media}).write_csv(
        catalog / "items.csv"
    )
    settings: dict[str, Any] = {"ingest": {"log": None}, "interpret": {"commit_rows": 8, "cache": False}}
    (folder / "videos.yaml").write_text(yaml.safe_dump({"name": "v", "catalog": str(catalog), "stages": settings}))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": STORE})
    cluster.add_node(num_cpus=2, object_store_memory=STORE)
    command = [sys.executable, "-m", "workflows", "run", str(folder / "videos.yaml"), "--run-dir", str(folder / "run")]
    process = subprocess.Popen([*command, "--address", cluster.address])  # noqa: S603 - our own command
    peaks: dict[int, tuple[str, float]] = {}
    try:
        while process.poll() is None:
            for actor in psutil.process_iter(["name", "cmdline", "ppid"]):
                if any("MapWorker" in part for part in actor.info["cmdline"] or ()):
                    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                        peaks[actor.pid] = str(actor.info["ppid"]), _peak_mib(actor.pid)
            time.sleep(0.5)
    finally:
        process.kill()
        cluster.shutdown()
    if process.returncode:
        raise RuntimeError(f"the run ended with status {process.returncode}")
    nodes = sorted({node for node, _ in peaks.values()})
    return {f"node {nodes.index(node)}": sorted(p for n, p in peaks.values() if n == node) for node in nodes}


def _peak_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return round(next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0), 1)


if __name__ == "__main__":
    main()
