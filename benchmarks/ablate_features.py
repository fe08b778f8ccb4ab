"""What finished runs of evidence.yaml show of captions: shares of the gap that the true attributes open, or gains.

python -m benchmarks.ablate_features RUN [RUN ...] [--out FILE]

Where a catalogue knows the truth, captions have to close half of the gap on cold items, and the interval of no control
may reach a quarter of it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from storage.run import RunDir

CONTROLS = ("null", "random", "shuffled")
LEAST, MOST = 0.5, 0.25  # of the gap: what captions have to close, and what a control may reach


def main() -> None:
    """Print the arms of every run and, where the truth is known, whether what has to hold holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run directories")
    parser.add_argument("--out", help="file for the JSON object, beside stdout")
    arguments = parser.parse_args()
    text = json.dumps({**machine(), "runs": {run: shown(RunDir(run)) for run in arguments.runs}}, indent=2)
    print(text)
    if arguments.out:
        Path(arguments.out).write_text(text + "\n", encoding="utf-8")


def shown(run: RunDir) -> dict[str, Any]:
    """The evidence of one run, without its sentences, and its verdict."""
    evidence = run.read_json("metrics", "ablate_features.json")
    found = {part: evidence[part]["arms"] for part in ("test", "test_cold", "truth_cold") if part in evidence}
    result: dict[str, Any] = {**found, "gate_curve": evidence["gate_curve"]}
    if "truth_cold" in found:
        arms = found["truth_cold"]
        result["captions_close_half"] = arms["caption"]["share"] >= LEAST
        result["controls_stay_below_a_quarter"] = all(arms[name]["share_interval"][1] <= MOST for name in CONTROLS)
    return result


if __name__ == "__main__":
    main()
