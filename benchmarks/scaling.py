"""Says what a run of any size costs, by constants that were measured, and which resource ends first.

python -m benchmarks.scaling [--items 1e7 --events 1e9] [--nodes 16] [--cores 32] [--memory-gib 128] [--gbit 10]
    [--out FILE]

Without a size it prints the three of docs/scaling.md. Prints a table; `--out` writes the same as JSON. Every constant
names the section of benchmarks/RESULTS.md, or the other file, in which its figures stand. All extrapolate linearly from
runs of at most 40 million events and a million items on one machine: they say where to look first, not what a bill is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY, STREAM = "Memory and speed by the size of the log", "The stream beside its operators"
QUANTIZERS = "Quantizers on real text vectors"
RESULTS = "benchmarks/RESULTS.md"
DAY_HOURS = 24.0
WIDTH = 128  # numbers of an embedding, the default of `project`
GIB, MILLION = 2**30, 1e6
HEAD_GIB = 16.0  # of the driver, as cluster/raycluster.yaml gives it


@dataclass(frozen=True)
class Constant:
    """A measured figure.

    Attributes:
        value: the figure, in `unit`.
        unit: of the value.
        how: how it follows from what was measured.
        said: what stands in the source, word for word.
        section: heading in the source; empty for a whole file.
        source: file in the repository.
    """

    value: float
    unit: str
    how: str
    said: tuple[str, ...]
    section: str = MEMORY
    source: str = RESULTS


CONSTANTS = {
    "interpret": Constant(
        2e6 / 18.2, "core seconds per million items", "two cores make 18.2 pictures a second", ("18.2 (14.2)",), STREAM
    ),
    "quantize": Constant(
        2e6 / 228_909 + 24 * 2,
        "core seconds per million items",
        "RQ-k-means: 24 s of fit and 228,909 rows per second of encoding, on two cores",
        ("fitted in 24", "228,909"),
        QUANTIZERS,
    ),
    "ingest": Constant(
        83.6 * 2 / 40, "core seconds per million events", "83.6 s for 40 million on two cores", ("83.6 | 113.9",)
    ),
    "features": Constant(
        113.9 * 2 / 40, "core seconds per million events", "113.9 s for 40 million on two cores", ("83.6 | 113.9",)
    ),
    "rank": Constant(
        709 / 10, "core seconds per million events", "an epoch of 10 million: 709 s, one worker", ("rank 709",)
    ),
    "evaluate": Constant(
        816 * 2 / 40,
        "core seconds per million events",
        "816 s for 40 million, of which a tenth are tests, on two cores",
        ("816 s",),
    ),
    "driver": Constant(583.0, "MiB", "of a small run", ("4 million | 10,000 | 583",)),
    "driver_events": Constant(
        32 / 36, "MiB per million events", "the driver grows by 32 MiB from 4 to 40 million", ("grows by 32 MiB",)
    ),
    "driver_items": Constant(
        124 / 0.99, "MiB per million items", "124 MiB more with 990,000 items more", ("holds 124 MiB more",)
    ),
    "piece": Constant(600.0, "MiB", "the largest other process of a small run", ("583 | 600",)),
    "piece_items": Constant(
        (1_044 - 600) / 0.99, "MiB per million items", "600 and 1,044 MiB with 990,000 items more", ("1,044",)
    ),
    "exchanged": Constant(
        60.0,
        "bytes per event",
        "files from piece to piece, with labels; written once and read once",
        ("some 60 bytes for each event",),
        section="",
        source="docs/decisions/0009-rows-by-files.md",
    ),
    "examples": Constant(
        220.0,
        "bytes per event",
        "a training row with a history of 20 items; written once, read once an epoch",
        ("about 220 bytes a row",),
        section="",
        source="docs/ranker.md",
    ),
}
OF_ITEMS, OF_EVENTS = ("interpret", "quantize"), ("ingest", "features", "rank", "evaluate")
REMEDIES = {
    "memory of the driver": "a head with more memory",
    "memory of a process": "workers with more memory",
    "memory of a node": "more memory for each node, or a narrower `project.width`",
    "hours of interpret": "GPUs, or more nodes: rows are independent, so hours fall with the cores",
    "hours of rank": "more `workers`, on GPUs; or train on the newest part of the log",
    "hours of evaluate": "score a sample of the test split",
    "hours of the network": "nodes with more bandwidth, or more of them; storage in the same zone",
}


@dataclass(frozen=True)
class Cluster:
    """Nodes of a cluster.

    Attributes:
        nodes: machines that work.
        cores: of each.
        memory_gib: of each.
        gbit: per second to the storage, of each.
    """

    nodes: int
    cores: int
    memory_gib: float
    gbit: float


@dataclass(frozen=True)
class Size:
    """A catalogue and its log."""

    items: float
    events: float


CLUSTER = Cluster(nodes=16, cores=32, memory_gib=128.0, gbit=10.0)
SIZES = (Size(1e7, 1e9), Size(1e9, 1e10), Size(1e8, 1e11))


def estimate(size: Size, cluster: Cluster) -> dict[str, Any]:
    """Returns core hours by stage, hours, bytes and memory, the use of every resource, and which one ends first.

    The use of a resource is what the run needs over what there is: memory of a process by its node's (the driver's by
    the head's), hours by a day.
    """
    items, events = size.items / MILLION, size.events / MILLION

    def constant(name: str) -> float:
        return CONSTANTS[name].value

    core_hours = {name: constant(name) * items / 3600 for name in OF_ITEMS}
    core_hours |= {name: constant(name) * events / 3600 for name in OF_EVENTS}
    cores = cluster.nodes * cluster.cores
    hours = {name: spent / cores for name, spent in core_hours.items()}
    moved = 2 * size.events * (constant("exchanged") + constant("examples")) + 2 * size.items * WIDTH * 4
    driver = constant("driver") + constant("driver_items") * items + constant("driver_events") * events
    memory_gib = {
        "driver": driver / 1024,
        "process": (constant("piece") + constant("piece_items") * items) / 1024,
        "node": size.items * (WIDTH * 4 + 8) / GIB,  # mapped once: embedding and hash
    }
    network_hours = moved * 8 / (cluster.nodes * cluster.gbit * 1e9) / 3600
    use = {
        "memory of the driver": memory_gib["driver"] / HEAD_GIB,
        "memory of a process": memory_gib["process"] / cluster.memory_gib,
        "memory of a node": memory_gib["node"] / cluster.memory_gib,
        **{f"hours of {name}": hours[name] / DAY_HOURS for name in ("interpret", "rank", "evaluate")},
        "hours of the network": network_hours / DAY_HOURS,
    }
    first = max(use, key=lambda name: use[name])
    return {
        "items": size.items,
        "events": size.events,
        "core_hours": core_hours,
        "hours": sum(hours.values()),
        "network_gib": moved / GIB,
        "network_hours": network_hours,
        "memory_gib": memory_gib,
        "use": use,
        "first_bottleneck": first,
        "remedy": REMEDIES[first],
    }


def table(estimates: Sequence[dict[str, Any]]) -> str:
    """Returns a Markdown table, a column for each size."""
    rows = [
        ("", [f"{count(found['items'])} items, {count(found['events'])} events" for found in estimates]),
        *(
            (f"{name}, core hours", [number(found["core_hours"][name]) for found in estimates])
            for name in (*OF_ITEMS, *OF_EVENTS)
        ),
        ("all of these, hours on the cluster", [number(found["hours"]) for found in estimates]),
        ("over the network, GiB", [number(found["network_gib"]) for found in estimates]),
        ("the same, hours", [number(found["network_hours"]) for found in estimates]),
        *(
            (f"{label}, GiB", [number(found["memory_gib"][name]) for found in estimates])
            for name, label in (
                ("driver", "the driver"),
                ("process", "the largest other process"),
                ("node", "tables that a node maps"),
            )
        ),
        *((f"*need over room:* {name}", [number(found["use"][name]) for found in estimates]) for name in REMEDIES),
        ("**first bottleneck**", [found["first_bottleneck"] for found in estimates]),
        ("its remedy", [found["remedy"] for found in estimates]),
    ]
    lines = ["| " + " | ".join([label, *cells]) + " |" for label, cells in rows]
    return "\n".join([lines[0], "|" + "---|" * (len(estimates) + 1), *lines[1:]])


def constants() -> str:
    """Returns a Markdown table of the constants and where they stand."""
    lines = ["| constant | value | from | in |", "|---|---|---|---|"]
    for name, found in CONSTANTS.items():
        where = f'`{found.source}`, "{found.section}"' if found.section else f"`{found.source}`"
        lines.append(f"| {name} | {number(found.value)} {found.unit} | {found.how} | {where} |")
    return "\n".join(lines)


def number(value: float) -> str:
    """Returns a figure with two digits that count, at least.

    >>> number(0.01234), number(5.62), number(54_321.0)
    ('0.012', '5.6', '54,321')
    """
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def count(value: float) -> str:
    """Returns a number of rows in words.

    >>> count(1e7), count(1e11)
    ('10 M', '100 B')
    """
    return f"{value / 1e9:g} B" if value >= 1e9 else f"{value / MILLION:g} M"


def main() -> None:
    """Prints the table of the sizes, and that of the constants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=float, help="of a size of your own")
    parser.add_argument("--events", type=float, help="of a size of your own")
    parser.add_argument("--nodes", type=int, default=CLUSTER.nodes)
    parser.add_argument("--cores", type=int, default=CLUSTER.cores)
    parser.add_argument("--memory-gib", type=float, default=CLUSTER.memory_gib)
    parser.add_argument("--gbit", type=float, default=CLUSTER.gbit, help="per second and node, to the storage")
    parser.add_argument("--out", type=Path, help="file for the same as JSON")
    given = parser.parse_args()
    if (given.items is None) != (given.events is None):
        parser.error("give --items and --events, or neither")
    sizes = SIZES if given.items is None else (Size(given.items, given.events),)
    cluster = Cluster(given.nodes, given.cores, given.memory_gib, given.gbit)
    estimates = [estimate(size, cluster) for size in sizes]
    print(f"{table(estimates)}\n\n{constants()}")
    if given.out:
        given.out.write_text(json.dumps(estimates, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
