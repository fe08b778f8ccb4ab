from __future__ import annotations

import json
from pathlib import Path

import pytest

from storage.errors import UserError
from workflows.engine.definition import resolve
from workflows.engine.preflight import preflight

STAGES = {"ingest": {}, "interpret": {}, "project": {}, "quantize": {}}
COLLABORATIVE = {**STAGES, "quantize": {"method": "rqvae+collaborative"}}


def check(place: Path, stages: dict, split: dict) -> None:
    raw = {"name": "w", "catalog": str(place / "catalog"), "split": split, "stages": stages}
    preflight(resolve(raw, source="w"), str(place / "run"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A catalogue whose timestamps only order the events of one user."""
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "items.csv").write_text("item_id,title\na,vase\n")
    (tmp_path / "catalog" / "interactions.csv").write_text("user_id,item_id,timestamp\nu,a,1\n")
    (tmp_path / "catalog" / "catalog.json").write_text(json.dumps({"timestamps": "order"}))
    return tmp_path


@pytest.mark.parametrize("stages", [{**STAGES, "features": {}}, COLLABORATIVE])
def test_timestamps_that_only_order_do_not_split_by_time(place: Path, stages: dict) -> None:
    with pytest.raises(UserError, match=r"write split: \{kind: leave_last\} at the top of the definition"):
        check(place, stages, {"kind": "time"})
    check(place, stages, {"kind": "leave_last"})
    (place / "catalog" / "catalog.json").write_text(json.dumps({"timestamps": "real"}))
    check(place, stages, {"kind": "time"})


def test_only_stages_that_read_the_split_need_a_log(place: Path) -> None:
    check(place, STAGES, {"kind": "time"})
    (place / "catalog" / "interactions.csv").unlink()
    check(place, STAGES, {"kind": "time"})
    for stages in ({**STAGES, "features": {}}, COLLABORATIVE):
        with pytest.raises(UserError, match="has no interactions table"):
            check(place, stages, {"kind": "leave_last"})


def test_more_codewords_than_items_are_told_before_anything_runs(place: Path) -> None:
    (place / "catalog" / "items.csv").write_text("item_id\n" + "".join(f"i{n}\n" for n in range(24)))
    stages = {**STAGES, "generate": {"language_model": None}}
    with pytest.raises(UserError, match=r"lower stages\.generate\.product_codes\.codewords to 16 or less"):
        check(place, stages, {"kind": "leave_last"})
    stages["generate"] = {"product_codes": {"codewords": 16}}
    check(place, stages, {"kind": "leave_last"})
