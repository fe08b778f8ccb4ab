"""Measures the seconds per stage of a whole workflow in a new run directory.

python -m benchmarks.stages --workflow workflows/definitions/demo.yaml --data CATALOGUE [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from benchmarks.machine import machine
from workflows.engine.definition import load
from workflows.engine.runner import execute


def main() -> None:
    """Runs the workflow in a temporary run directory and prints the seconds of every stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workflow", default="workflows/definitions/demo.yaml")
    parser.add_argument("--data", required=True, help="canonical catalogue")
    parser.add_argument("--out", help="file for the JSON object, beside stdout")
    arguments = parser.parse_args()
    definition = load(arguments.workflow, [f"catalog={arguments.data}"])
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tesserec-bench-") as run:
        manifest = execute(definition, run)
    result = {
        "workflow": definition.name,
        **machine(),
        "seconds": round(time.monotonic() - began, 1),
        "stages": {
            name: {key: getattr(entry, key) for key in ("rows_in", "seconds", "rows_per_second")}
            for name, entry in manifest.stages.items()
        },
        "evaluate": manifest.stages["evaluate"].metrics if "evaluate" in manifest.stages else None,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        Path(arguments.out).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
