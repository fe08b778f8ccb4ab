from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.settings import STAGES as SERVED
from storage.manifest import Manifest, StageEntry
from workflows.engine.summary import summary

CARD = {"recall@5": 0.1, "ndcg@5": 0.05, "recall@10": 0.2, "ndcg@10": 0.0625, "coverage@10": 0.5}


@pytest.mark.parametrize(
    "names", [("product_codes", "language_model", "content"), ("parallel", "sequential", "itemknn")]
)
def test_recommenders_stand_under_the_names_that_the_run_gave_them(names, tmp_path) -> None:
    """Those of a run of an earlier version, too."""
    metrics = {"generator": CARD, **dict.fromkeys(names, CARD), "generator_over_content": {"ndcg@10": 1.5}}
    stages = {"evaluate": StageEntry(state="complete", metrics=metrics)}
    shown = summary(Manifest(name="tiny", stages=stages), str(tmp_path))
    assert "next items, test" in shown
    rows = [line.split() for line in shown.splitlines()]
    for name in ("generator", *names):
        assert [name, "0.2000", "0.0625", "0.5000"] in rows
    assert "generator_over" not in shown
    assert "as is" not in shown


def test_lists_as_is_stand_beside_masked_ones_in_a_line(tmp_path) -> None:
    card = {**CARD, "cold_recall@10": math.nan, "as_is": {**CARD, "recall@10": 0.15, "ndcg@10": 0.03}}
    metrics = {"generator": card, "language_model": card, "truth": CARD, "odd": {**CARD, "as_is": None}}
    shown = summary(
        Manifest(name="w", stages={"evaluate": StageEntry(state="complete", metrics=metrics)}), str(tmp_path)
    )
    rows = [line.split() for line in shown.splitlines()]
    heads = "next items, test recall@10 ndcg@10 recall@10 as is ndcg@10 as is coverage@10 cold_recall@10"
    assert heads.split() in rows
    for name in ("generator", "language_model"):
        assert [name, "0.2000", "0.0625", "0.1500", "0.0300", "0.5000", "–"] in rows
    for name in ("truth", "odd"):
        assert [name, "0.2000", "0.0625", "0.5000"] in rows


KEYS = st.sampled_from(["ranker", "popularity", "as_is", *CARD, "auc", "user_auc", "calibration"])
LEAVES = st.none() | st.floats() | st.integers() | st.text(max_size=3)


@settings(max_examples=20)
@given(st.dictionaries(KEYS, st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner))))
def test_whatever_is_not_defined_is_a_dash(metrics) -> None:
    stages = {"evaluate": StageEntry(state="complete", metrics=metrics, seconds=math.nan)}
    shown = summary(Manifest(name="tiny", stages=stages), "nowhere")
    assert "nan" not in shown
    assert "inf" not in shown


def test_the_last_lines_say_what_to_do_next() -> None:
    stages = {name: StageEntry(state="complete") for name in ("ingest", *SERVED)}
    assert summary(Manifest(name="w", stages=stages), "runs/w").endswith("next: tesserec serve runs/w")
    stages[SERVED[-1]].state = "interrupted"
    last = f"{SERVED[-1]} was interrupted: the same `tesserec run` goes on from there"
    assert summary(Manifest(name="w", stages=stages), "runs/w").endswith(last)


def test_what_was_left_out_is_shown_with_its_reason() -> None:
    line = "generate: left out, since no item has a title: title_to_sid"
    assert line in summary(Manifest(name="w", left_out=[line]), "runs/w").splitlines()
