from __future__ import annotations

from models.evaluation.variants import conclude
from tests.models.evaluation.test_variants import VARIANTS as LABELLED
from tests.models.evaluation.test_variants import by_probability, world
from workflows.report import ablate_features

NOTHING = [None, None]
VARIANTS = {
    "id": {"auc": 0.6, "auc_interval": [0.55, 0.65], "seeds": [0.59, 0.61]},
    "caption": {
        "auc": 0.63,
        "auc_interval": [0.58, 0.68],
        "seeds": [0.62, 0.64],
        "gain": 0.03,
        "gain_interval": [0.02, 0.04],
        "share": 0.75,
        "share_interval": [0.6, 0.9],
    },
    "truth": {
        "auc": 0.64,
        "auc_interval": NOTHING,
        "seeds": [0.64],
        "gain": None,
        "gain_interval": NOTHING,
    },
}


def test_variants_stand_with_what_is_known_of_them():
    (found,) = ablate_features.comparisons({"test": {"variants": VARIANTS, "sentences": ["Captions help."]}})
    assert found.sentences == ["Captions help."]
    assert found.table.columns[4] == "gain over id"
    assert found.table.rows == [
        ["id", "2", "0.6000", "0.5500 to 0.6500", "–", "–", "–", "–"],
        ["caption", "2", "0.6300", "0.5800 to 0.6800", "+0.0300", "0.0200 to 0.0400", "75.0%", "60.0% to 90.0%"],
        ["truth", "1", "0.6400", "–", "–", "–", "–", "–"],
    ]
    (figure,) = found.figures
    assert "caption +0.0300 (0.0200 to 0.0400)" in figure.text
    assert "truth" not in figure.svg
    assert "gain in AUC over id" in figure.svg


def test_without_a_truth_variant_no_share_is_spoken_of():
    variants = {
        "id": VARIANTS["id"],
        "caption": {key: value for key, value in VARIANTS["caption"].items() if "share" not in key},
    }
    (found,) = ablate_features.comparisons({"test": {"variants": variants}})
    assert len(found.table.columns) == len(found.table.rows[1]) == 6


def test_the_scopes_that_are_there_are_shown_cold_items_first():
    scope = {"variants": VARIANTS, "sentences": []}
    titles = [part.title for part in ablate_features.comparisons({"test": scope, "truth_cold": scope, "test_cold": {}})]
    assert titles == [ablate_features.SCOPES["truth_cold"], ablate_features.SCOPES["test"]]
    assert ablate_features.comparisons({}) == []


def test_what_the_statistics_conclude_is_what_the_page_shows():
    probability, scores = world()
    concluded = conclude(by_probability(probability, scores, seed=0, draws=20), LABELLED, "on cold items")
    (found,) = ablate_features.comparisons({"truth_cold": concluded})
    assert [row[0] for row in found.table.rows] == list(scores)
    assert found.sentences == concluded["sentences"]
    assert len(found.figures) == 1


def test_the_gate_curve_has_a_row_for_each_rate_and_a_line_for_those_with_intervals():
    points = [
        {"rate": 0.0, "auc": 0.6, "interval": [0.58, 0.62]},
        {"rate": 0.5, "auc": 0.62, "interval": NOTHING},
        {"rate": 1.0, "auc": 0.63, "interval": [0.61, 0.65]},
    ]
    table, (figure,) = ablate_features.gate({"gate_curve": points})
    assert [row[0] for row in table.rows] == ["0.0%", "50.0%", "100.0%"]
    assert table.rows[1] == ["50.0%", "0.6200", "–"]
    assert figure.text == "0.0% 0.600; 100.0% 0.630"
    assert ablate_features.gate({"gate_curve": points[:1]})[1] == []
    assert ablate_features.gate({}) is None
