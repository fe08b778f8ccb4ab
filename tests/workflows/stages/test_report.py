from __future__ import annotations

from storage import files
from storage.manifest import Manifest, StageEntry, write_manifest
from storage.run import RunDir
from workflows.engine.definition import resolve
from workflows.engine.registry import stage
from workflows.engine.runner import _fingerprints
from workflows.engine.stage import Context
from workflows.stages import report


def fingerprint(tmp_path, stages) -> str:
    raw = {"name": "tiny", "catalog": str(tmp_path), "stages": stages}
    return _fingerprints(resolve(raw, source="a test"))["report"]


def test_every_stage_before_it_counts_into_its_fingerprint(tmp_path):
    stages = {"ingest": {}, "interpret": {}, "project": {}, "quantize": {}, "report": {}}
    variants = [
        stages,
        {**stages, "interpret": {"fetch": {"max_media": 3}}},
        {**stages, "quantize": {"steps": 7}},
        {name: config for name, config in stages.items() if name != "quantize"},
        {"ingest": {}, "report": {}},
    ]
    assert len({fingerprint(tmp_path, variant) for variant in variants}) == len(variants)
    assert fingerprint(tmp_path, stages) == fingerprint(tmp_path, stages)


def test_it_writes_the_page_while_its_own_entry_is_running(tmp_path):
    run = RunDir(str(tmp_path))
    write_manifest(run.root, Manifest(name="tiny", stages={"report": StageEntry(state="running")}))
    lines: list[str] = []
    context = Context(run=run, catalog="", seed=0, fingerprint="", log=lines.append, progress=lambda done, total: None)
    result = stage("report").run(report.Config(), context)
    assert result.rows_in == result.rows_out
    page = files.read_bytes(run.uri("report", "index.html")).decode()
    assert "Still running" not in page
    assert run.uri("report", "index.html") in lines[0]
