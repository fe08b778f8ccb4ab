from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from storage import files
from storage.manifest import Manifest, StageEntry, write_manifest
from storage.run import RunDir
from workflows.report import ablate_tasks, write_report

NOTHING = [None, None]
TASKS = ["sids_to_sid", "title_to_sid", "caption_to_title"]


def variant(tasks: int, ndcg: float, sids: str = "own", **more: Any) -> dict[str, Any]:
    return {
        "sids": sids,
        "tasks": TASKS[:tasks],
        "recall@10": 2 * ndcg,
        "recall@10_interval": [ndcg, 3 * ndcg],
        "ndcg@10": ndcg,
        "ndcg@10_interval": [ndcg / 2, 2 * ndcg],
        "seeds": {"recall@10": [ndcg, 3 * ndcg], "ndcg@10": [ndcg / 2, ndcg * 1.5]},
        "held_out": {"sids_to_sid": {"examples": 9.0, "exact@10": ndcg * 10}},
        **more,
    }


FOUND = {
    "steps": 300,
    "batch_size": 20,
    "main_documents": 12,
    "queries": 1234,
    "users": 56,
    "variants": {
        "own-1": variant(1, 0.02),
        "own-2": variant(2, 0.03, added={"ndcg@10": 0.01, "ndcg@10_interval": [0.002, 0.018]}),
        "own-3": variant(
            3,
            0.025,
            added={"ndcg@10": -0.005, "ndcg@10_interval": NOTHING},
            held_out={"caption_to_title": {"examples": 9.0, "token_f1": 0.5, "shuffled": {"token_f1": 0.25}}},
        ),
        "original-2": variant(2, 0.01, "original"),
    },
    "compared": {
        "All in place of nothing": {
            "recall@10": 0.02,
            "recall@10_interval": [-0.01, 0.05],
            "ndcg@10": 0.005,
            "ndcg@10_interval": [0.001, 0.009],
        }
    },
    "sentences": ["All < nothing & more."],
}


def test_every_variant_stands_with_what_its_last_task_changed() -> None:
    table = ablate_tasks.variants(FOUND)
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert [row[:3] for row in table.rows] == [
        ["1 task", "the run's", "sids_to_sid"],
        ["2 tasks", "the run's", "title_to_sid"],
        ["3 tasks", "the run's", "caption_to_title"],
        ["2 tasks", "of text alone", "–"],
    ]
    assert table.rows[1][3:] == [
        *("0.0600", "0.0300 to 0.0900", "0.0300", "0.0150 to 0.0600"),
        *("+0.0100", "0.0020 to 0.0180"),
    ]
    assert [row[-2:] for row in table.rows] == [
        ["–", "–"],
        ["+0.0100", "0.0020 to 0.0180"],
        ["-0.0050", "–"],
        ["–", "–"],
    ]


def test_what_variants_have_alike_is_said() -> None:
    assert "300 steps, with 12 documents of the main task each, on average" in ablate_tasks.budget(FOUND)
    assert "share the rest of 20 evenly" in ablate_tasks.budget(FOUND)


def test_the_curve_has_every_seed_and_the_variants_of_text_alone_stand_beside_their_likes() -> None:
    curve, beside = ablate_tasks.curves(FOUND)
    assert curve.text == "1: 0.0200; 2: 0.0300; 3: 0.0250"
    without = copy.deepcopy(FOUND)
    for each in without["variants"].values():
        each["seeds"]["ndcg@10"] = []
    assert curve.svg.count("<use") == ablate_tasks.curves(without)[0].svg.count("<use") + 2 * 3
    assert [part.split(" 0.")[0] for part in beside.text.split("; ")] == [
        "SIDs of text alone, 2 tasks",
        "SIDs the run's, 2 tasks",
        "SIDs the run's, 3 tasks",
    ]


def test_without_text_alone_the_curve_stands_by_itself_and_without_intervals_nothing_is_drawn() -> None:
    own = {name: each for name, each in FOUND["variants"].items() if name != "original-2"}
    assert len(ablate_tasks.curves({**FOUND, "variants": own})) == 1
    blind = {name: {**each, "ndcg@10_interval": NOTHING} for name, each in own.items()}
    assert ablate_tasks.curves({**FOUND, "variants": blind}) == []
    assert ablate_tasks.variants({**FOUND, "variants": blind}).rows[0][7] == "–"


def test_a_task_has_scores_of_the_arms_that_learned_it_and_its_control() -> None:
    table = ablate_tasks.held_out(FOUND)
    assert table.columns == ["task", "measure", "1", "2", "3", "2, text alone"]
    assert table.rows == [
        ["sids_to_sid", "the item is among ten", "0.200", "0.300", "–", "0.100"],
        ["caption_to_title", "token F1", "–", "–", "0.500", "–"],
        ["caption_to_title, captions shuffled", "token F1", "–", "–", "0.250", "–"],
    ]


@pytest.mark.parametrize(
    "function", [ablate_tasks.variants, ablate_tasks.compared, ablate_tasks.held_out, ablate_tasks.curves]
)
def test_what_is_absent_is_left_out(function) -> None:
    assert not function({})


def test_the_page_has_a_section_once_the_stage_is_complete(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    run.write_json(FOUND, "metrics", "ablate_tasks.json")
    pages = []
    for state in ("running", "complete"):
        write_manifest(run.root, Manifest(name="tiny", stages={"ablate_tasks": StageEntry(state=state)}))
        pages.append(files.read_bytes(write_report(run)).decode())
    assert "All &lt; nothing" not in pages[0]
    assert "All &lt; nothing &amp; more." in pages[1]
    assert "1,234 queries of 56 users" in pages[1]
    assert "All in place of nothing" in pages[1]
    assert pages[1].count("<svg") == pages[0].count("<svg") + 2
