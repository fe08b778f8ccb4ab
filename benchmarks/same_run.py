"""Compares two finished runs: semantic IDs, captions and interests, embeddings, metrics and training curves.

python -m benchmarks.same_run RUN_A RUN_B

Prints one JSON object, then one line per difference. Exits with 0 if the runs are the same, 1 if they differ, and 2 if
one of them is not a finished run. Seconds, speeds, timestamps, paths and cache hits are not compared; differing
settings are listed but do not count as a difference.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import yaml

from storage import files
from storage.errors import UserError
from storage.manifest import read_manifest
from storage.run import RunDir

# Words of older runs, as keys, as file names and as values, and what newer runs call the same.
RENAMED = {
    "evidence": "ablate_features",
    "ablation": "ablate_tasks",
    "arms": "variants",
    "parallel": "product_codes",
    "sequential": "language_model",
    "itemknn": "content",
    "generator_over_itemknn": "generator_over_content",
    "digit": "suffix",
    "always_digit": "always_suffix",
    "max_digits": "max_suffixes",
}
UNNESTED = {"recommenders"}  # keys that hold in newer runs what lies beside them in older ones
IGNORED = re.compile(r"seconds|rows_per_s|^started$|^fingerprint$|^error$|^sentences$|^(reused|computed|cached|cache_)")
PATH = re.compile(r"^/|://")
OVER_POPULARITY = re.compile(r"^popularity|_over_popularity$|^auc_gain$")  # what the popularity baseline decides

TOLERANCE = 1e-6  # relative or absolute
POPULARITY_TOLERANCE = 1e-4
IDENTICAL = (("sids", "codes"), ("items", "caption"), ("items", "interests"))  # tables and columns
VECTORS = (("items", "image_vector"), ("items", "text_vector"), ("embeddings", "embedding"))
LINES = 20  # differences of a part that are printed

Values = dict[tuple[str, ...], Any]


def main() -> None:
    """Prints the differences of two runs, and exits with 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_a")
    parser.add_argument("run_b")
    arguments = parser.parse_args()
    try:
        found = compare(arguments.run_a, arguments.run_b)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(json.dumps(found, indent=2, ensure_ascii=False))
    for part, result in found["parts"].items():
        print(f"{part}: " + ("same" if not result["different"] else f"{result['different']} differences"))
        for line in result["examples"]:
            print(f"  {line}")
    sys.exit(0 if found["same"] else 1)


def compare(run_a: str, run_b: str) -> dict[str, Any]:
    """Compares two runs.

    Args:
        run_a: URI of a run directory.
        run_b: URI of another.

    Returns:
        `same`, whether nothing differs; `parts`, by name: `compared`, `different` (numbers of values) and `examples`
        (lines of the first differences), for vectors also `max_abs_diff`; `settings`, lines of settings that differ.

    Raises:
        UserError: there is no run, or it is not finished.
    """
    runs = [RunDir(_finished(root)) for root in (run_a, run_b)]
    parts: dict[str, Any] = {}
    for compared, columns in ((_compare_rows, IDENTICAL), (_compare_vectors, VECTORS)):
        for table, column in columns:
            parts[f"{table}.{column}"] = compared(*(_column(run, table, column) for run in runs))
    metrics = [_metrics(run) for run in runs]
    for name in sorted({path[0] for values in metrics for path in values}):
        part = [{path: value for path, value in values.items() if path[0] == name} for values in metrics]
        parts[f"metrics.{name}"] = _part(len(part[0].keys() | part[1].keys()), _differences(*part))
    settings = _differences(*(_settings(run) for run in runs))
    return {
        "run_a": run_a,
        "run_b": run_b,
        "same": not any(part["different"] for part in parts.values()),
        "parts": parts,
        "settings": settings,
    }


def flatten(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields the values inside a JSON value with their paths, under the names of newer runs, without ignored keys.

    >>> dict(flatten({"itemknn": {"recall@10": 0.5, "seconds": 3.0}, "chosen": "parallel"}))
    {('content', 'recall@10'): 0.5, ('chosen',): 'product_codes'}
    """
    if isinstance(value, dict):
        for key, part in value.items():
            if not IGNORED.search(key):
                yield from flatten(part, path if key in UNNESTED else (*path, _renamed(key)))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from flatten(part, (*path, str(number)))
    elif not isinstance(value, str):
        yield path, value
    elif not PATH.search(value):
        yield path, _renamed(value)


def _renamed(word: str) -> str:
    return RENAMED.get(word, word)


def _finished(root: str) -> str:
    manifest = read_manifest(root)
    if manifest is None:
        raise UserError(f"There is no run at {root}: give the folder that holds its manifest.json.")
    for stage, entry in manifest.stages.items():
        if entry.state != "complete":
            raise UserError(f"The stage {stage} of {root} is {entry.state}: finish the run before it is compared.")
    return root


def _metrics(run: RunDir) -> Values:
    """Returns the counts and metrics of all stages and the contents of metrics/, by stage or file first."""
    manifest = run.read_json("manifest.json")
    values = {("manifest", *path): value for path, value in flatten(manifest["stages"])}
    fs, folder = files.filesystem(run.uri("metrics"))
    for file in sorted(fs.glob(f"{folder}/*.json")):
        stem = file.rsplit("/", 1)[-1].removesuffix(".json")
        found = flatten(run.read_json("metrics", f"{stem}.json"), (_renamed(stem),))
        values |= dict(found)
    return values


def _settings(run: RunDir) -> Values:
    return dict(flatten(yaml.safe_load(files.read_bytes(run.uri("workflow.yaml")))))


def _differences(a: Values, b: Values) -> list[str]:
    """Returns a line per value that differs or that only one side has."""
    lines = []
    for path in sorted(a.keys() | b.keys()):
        name = ".".join(path)
        if path not in a or path not in b:
            value, side = (a[path], "A") if path in a else (b[path], "B")
            lines.append(f"{name}: only in run {side} ({value})")
        elif not _equal(a[path], b[path], path):
            lines.append(f"{name}: {a[path]} in run A, {b[path]} in run B")
    return lines


def _equal(a: Any, b: Any, path: tuple[str, ...]) -> bool:
    if not (isinstance(a, float) or isinstance(b, float)) or a is None or b is None or isinstance(a, str | bool):
        return bool(a == b)
    loose = any(OVER_POPULARITY.search(key) for key in path)
    tolerance = POPULARITY_TOLERANCE if loose else TOLERANCE
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)


def _column(run: RunDir, table: str, column: str) -> dict[str, Any]:
    """Returns a column's value by item; empty if the run does not have the column."""
    if not files.exists(run.uri(table)) or column not in files.dataset(run.uri(table)).schema.names:
        return {}
    found = run.read_table(table, columns=["item_id", column])
    return dict(zip(found["item_id"].to_pylist(), found[column].to_pylist(), strict=True))


def _matched(a: dict[str, Any], b: dict[str, Any]) -> tuple[list[tuple[str, Any, Any]], list[str]]:
    """Returns the items of both sides with their two values, and a line per other item."""
    lines = [f"item {item}: only in run {'A' if item in a else 'B'}" for item in sorted(a.keys() ^ b.keys())]
    return [(item, a[item], b[item]) for item in sorted(a.keys() & b.keys())], lines


def _compare_rows(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Compares values that have to be identical item by item."""
    rows, lines = _matched(a, b)
    lines += [f"item {item}: {one} in run A, {other} in run B" for item, one, other in rows if one != other]
    return _part(len(rows), lines)


def _compare_vectors(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Compares vectors item by item, within the tolerance."""
    rows, lines = _matched(a, b)
    largest = 0.0
    for item, one, other in rows:
        if one is None or other is None or len(one) != len(other):
            if one != other:
                lines.append(f"item {item}: a vector of another width, or none")
            continue
        left, right = np.array(one), np.array(other)
        difference = float(np.nan_to_num(np.abs(left - right)).max(initial=0.0))
        largest = max(largest, difference)
        if not np.allclose(left, right, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
            lines.append(f"item {item}: differs by {difference:.3g}")
    return {**_part(len(rows), lines), "max_abs_diff": largest}


def _part(compared: int, lines: list[str]) -> dict[str, Any]:
    more = [f"and {len(lines) - LINES} more"] if len(lines) > LINES else []
    return {"compared": compared, "different": len(lines), "examples": lines[:LINES] + more}


if __name__ == "__main__":
    main()
