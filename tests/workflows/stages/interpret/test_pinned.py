"""What results are kept under must not move: a changed key computes every caption and vector of a catalogue anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from operators.cached import CachedOperator
from storage.hashing import fingerprint
from workflows.engine.definition import resolve
from workflows.stages.interpret import stage as interpret

CASES = [json.loads(line) for line in Path(__file__).with_name("pinned.jsonl").read_text().splitlines()]


def digest(value):
    return fingerprint(json.dumps(value, sort_keys=True))


def pinned(sections):
    """Digests of the settings with every default and of the stage's identity; the operators' folders in the cache."""
    raw = {"name": "w", "catalog": "c", "stages": {"ingest": {}, "interpret": sections}}
    config = resolve(raw, source="w").configs["interpret"]
    operators = [step.operator for step in interpret.steps(config, "c", "cache")]
    return {
        "given": sections,
        "settings": digest(config.model_dump(mode="json", exclude={"previous"})),
        "identity": digest(config.identity()),
        "folders": [operator.folder for operator in operators if isinstance(operator, CachedOperator)],
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: json.dumps(case["given"]))
def test_settings_defaults_and_cache_keys_stay(case):
    assert pinned(case["given"]) == case
