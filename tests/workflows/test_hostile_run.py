"""One item in a hundred is hostile: a run of the command line over 2,000 of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from PIL import Image

from storage import files
from tests.operators.test_hostile_media import FILES, kind_of

ITEMS = 2_000
TESSEREC = Path(sys.executable).parent / "tesserec"


@pytest.mark.soak
@pytest.mark.timeout(1_800)
def test_a_run_over_a_hundredth_of_hostile_media_rejects_exactly_those_and_names_every_reason(tmp_path):
    (tmp_path / "catalog").mkdir()
    rng = np.random.default_rng(0)
    refused = {name: code for name, (_, code) in FILES.items() if isinstance(code, str)}
    hostile = rng.choice(sorted(refused), ITEMS // 100, replace=False).tolist()
    rows = []
    for i in range(ITEMS):
        name = hostile[i // 100] if i % 100 == 0 else f"{i}.png"
        if name in hostile:
            (tmp_path / "catalog" / name).write_bytes(FILES[name][0]())
        else:
            pixels = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((160, 120)).save(tmp_path / "catalog" / name)
        rows.append({"item_id": f"item-{i}", "media": [{"uri": name, "kind": kind_of(name)}]})
    pl.DataFrame(rows).write_parquet(tmp_path / "catalog" / "items.parquet")
    definition = {"name": "w", "catalog": "catalog", "stages": {"ingest": None, "interpret": None}}
    (tmp_path / "w.yaml").write_text(yaml.safe_dump(definition))

    done = subprocess.run([TESSEREC, "run", "w.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    entry = json.loads((tmp_path / "runs" / "w" / "manifest.json").read_text())["stages"]["interpret"]
    assert (entry["rows_in"], entry["rows_out"], entry["rejected"]) == (ITEMS, ITEMS - 20, 20)
    rejects = files.read_table(str(tmp_path / "runs" / "w" / "rejects" / "interpret")).to_pylist()
    said = {row["item_id"]: row["code"] for row in rejects if row["severity"] == "degraded"}
    assert said == {f"item-{100 * i}": refused[name] for i, name in enumerate(hostile)}
    assert {row["item_id"] for row in rejects if row["severity"] == "rejected"} == set(said)
