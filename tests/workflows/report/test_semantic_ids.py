from __future__ import annotations

import pytest

from workflows.report import semantic_ids

CARD = {
    "usage": [1.0, 0.5],
    "dead_codes": [0, 2],
    "collision_share": 0.25,
    "neighbour_overlap": {"prefix": 0.125, "decoded": None},
    "category_purity": {
        "kind.of": {"values": 3, "known": 1.0, "purity": [0.5, 0.75], "shuffled": [0.25, 0.5], "covered": [1.0, None]}
    },
}


def cells(rows: list[semantic_ids.Row]) -> dict[str, list[tuple[str, str]]]:
    return {row.name: row.cells for row in rows}


def test_each_figure_stands_with_that_of_the_naive_ids():
    fit = {"scorecard": CARD, "naive": {**CARD, "usage": [0.75, 0.25], "collision_share": 0.5}}
    assert cells(semantic_ids.by_level(fit, [4, 8])) == {
        "codebook size": [("4", ""), ("8", "")],
        "codewords used": [("100.0%", "75.0%"), ("50.0%", "25.0%")],
        "dead codes": [("0", "0"), ("2", "2")],
    }
    assert cells(semantic_ids.by_whole_id(fit)) == {
        "items that share all codes with another": [("25.0%", "50.0%")],
        "neighbour overlap@10, by shared prefix": [("12.5%", "12.5%")],
    }


def test_without_naive_ids_figures_stand_alone():
    assert cells(semantic_ids.by_level({"scorecard": CARD}, []))["dead codes"] == [("0", ""), ("2", "")]


def test_levels_that_only_one_of_both_has_are_dashes():
    rows = semantic_ids.by_level({"scorecard": CARD, "naive": {"usage": [0.5], "dead_codes": [1, 1, 1]}}, [])
    assert cells(rows)["codewords used"] == [("100.0%", "50.0%"), ("50.0%", "–")]
    assert cells(rows)["dead codes"] == [("0", "1"), ("2", "1"), ("–", "1")]


def test_purity_stands_with_its_control_and_what_it_covers():
    naive = {"category_purity": {"kind.of": {"purity": [0.25, 0.5]}}}
    assert cells(semantic_ids.purity({"scorecard": CARD, "naive": naive})) == {
        "kind.of": [("50.0%", "25.0%"), ("75.0%", "50.0%")],
        "kind.of, shuffled": [("25.0%", ""), ("50.0%", "")],
        "kind.of, items that count": [("100.0%", ""), ("–", "")],
    }


def test_what_linear_models_name_stands_beside_the_embedding_and_a_guess():
    card = {"codes": [0.25, 0.5], "embedding": 0.75, "commonest": 0.125}
    found = semantic_ids.decodability({"scorecard": {"decodability": {"kind": card}}})
    assert found.columns == ["attribute", "first code", "2 codes", "embedding", "commonest value"]
    assert found.rows == [["kind", "25.0%", "50.0%", "75.0%", "12.5%"]]


def test_many_and_long_attributes_are_bounded():
    many = {f"{'{0}' * 100}{number}": {"purity": [1.0]} for number in range(100)}
    rows = semantic_ids.purity({"scorecard": {"category_purity": many}})
    assert len(rows) == semantic_ids.ATTRIBUTES
    assert {len(row.name) for row in rows} == {semantic_ids.NAME_LENGTH}


def test_drift_sets_new_items_beside_those_of_the_fit():
    found = {
        "reconstruction_cosine": {"old": 0.9, "new": 0.75},
        "divergence": {"new": [0.5, 0.25], "resampled": [0.125, None]},
    }
    assert semantic_ids.drift({"drift": found}).rows == [
        ["reconstruction cosine", "0.750", "0.900"],
        ["divergence of the codes, bits, level 1", "0.500", "0.125"],
        ["divergence of the codes, bits, level 2", "0.250", "–"],
    ]


@pytest.mark.parametrize("fit", [{}, {"scorecard": None, "naive": {}}, {"scorecard": {"neighbour_overlap": 3}}])
def test_what_is_absent_is_left_out(fit):
    assert semantic_ids.by_level(fit, [4, 4]) == []
    assert semantic_ids.by_whole_id(fit) == []
    assert semantic_ids.purity(fit) == []
    assert semantic_ids.drift(fit) is None
    assert semantic_ids.training(fit) == []


def test_losses_that_a_fit_does_not_have_are_not_drawn():
    history = [{"step": 1, "reconstruction": 0.5, "alignment": 0.0}, {"step": 2, "reconstruction": 0.0}]
    (figure,) = semantic_ids.training({"history": history})
    assert figure.text == "reconstruction from 0.5000 to 0.0000; step 1 to 2"
