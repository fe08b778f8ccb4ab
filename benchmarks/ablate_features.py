"""Results of finished feature ablations: the gains of captions, or their shares of the gain by true attributes.

python -m benchmarks.ablate_features RUN [RUN ...] [--out FILE]

If the catalogue has a known truth, captions must reach half of the gain by the true attributes on cold items, and no
control's interval may reach a quarter of it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from storage.run import RunDir

CONTROLS = ("null", "random", "shuffled")
LEAST, MOST = 0.5, 0.25  # shares of the gain: minimum for captions, maximum for a control


def main() -> None:
    """Print the variants of every run and, where the truth is known, whether what has to hold holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run directories")
    parser.add_argument("--out", help="file for the JSON object, beside stdout")
    arguments = parser.parse_args()
    text = json.dumps({**machine(), "runs": {run: shown(RunDir(run)) for run in arguments.runs}}, indent=2)
    print(text)
    if arguments.out:
        Path(arguments.out).write_text(text + "\n", encoding="utf-8")


def shown(run: RunDir) -> dict[str, Any]:
    """Return the ablation of one run, without its sentences, and its verdict."""
    metrics = run.read_json("metrics", "ablate_features.json")
    found = {part: metrics[part]["variants"] for part in ("test", "test_cold", "truth_cold") if part in metrics}
    result: dict[str, Any] = {**found, "gate_curve": metrics["gate_curve"]}
    if "truth_cold" in found:
        variants = found["truth_cold"]
        result["captions_close_half"] = variants["caption"]["share"] >= LEAST
        result["controls_stay_below_a_quarter"] = all(variants[name]["share_interval"][1] <= MOST for name in CONTROLS)
    return result


if __name__ == "__main__":
    main()
