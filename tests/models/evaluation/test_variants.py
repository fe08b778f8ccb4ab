from __future__ import annotations

import doctest
import json

import numpy as np
import pytest

from models.evaluation import bootstrap, variants
from models.evaluation.clicks import auc

USERS, ITEMS, SEEDS = 120, 40, 5
LABELS = {"half": "Half a hint", "null": "Nulls", "noise": "Noises", "truth": "True attributes"}
VARIANTS = {name: variants.Variant(name, label) for name, label in LABELS.items()}


def world(*, hint: float = 1.0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """True probabilities of users × items, and variants that see less or more of what makes them."""
    random = np.random.default_rng(0)
    user, item = random.normal(size=(USERS, 3)), random.normal(size=(ITEMS, 3))
    match = user @ item.T
    probability = 1 / (1 + np.exp(1 - match))
    own = random.normal(size=(USERS, ITEMS))  # what the base variant goes by

    def variant(weight: float) -> np.ndarray:
        return np.stack([own + weight * match + 0.1 * random.normal(size=own.shape) for _ in range(SEEDS)])

    scores = {"id": variant(0.3), "half": variant(0.3 + 0.4 * hint), "null": variant(0.3), "truth": variant(0.3 + hint)}
    return probability, scores


def by_probability(probability: np.ndarray, scores: dict[str, np.ndarray], **options: int) -> variants.Results:
    """Of users × items, by user and item."""
    units = tuple(code.reshape(-1) for code in np.indices(probability.shape))
    flat = {name: score.reshape(len(score), -1) for name, score in scores.items()}
    return variants.compare(units, probability.reshape(-1), flat, **options)


def test_variants_stand_in_order_with_intervals_that_hold_their_means():
    probability, scores = world()
    results = by_probability(probability, scores, seed=1, draws=100)
    assert results["id"]["auc"] < results["half"]["auc"] < results["truth"]["auc"]
    assert results["half"]["gain_interval"][0] > 0
    low, high = results["null"]["gain_interval"]
    assert low < 0 < high
    for name, one in results.items():
        assert one["auc"] == pytest.approx(np.mean(one["seeds"]))
        assert len(one["seeds"]) == SEEDS
        for figure in ("auc", "gain", "share"):
            if figure in one:
                assert one[f"{figure}_interval"][0] <= one[figure] <= one[f"{figure}_interval"][1], (name, figure)
    assert {name for name, one in results.items() if "gain" in one} == {"half", "null", "truth"}
    assert {name for name, one in results.items() if "share" in one} == {"half", "null"}
    gap = results["truth"]["auc"] - results["id"]["auc"]
    assert results["half"]["share"] == pytest.approx((results["half"]["auc"] - results["id"]["auc"]) / gap)
    assert results["null"]["share_interval"][1] < 0.25


def test_pairing_makes_intervals_of_gains_narrow():
    probability, scores = world()
    results = by_probability(probability, scores, seed=1, draws=100)
    width = {key: np.diff(results["half"][key])[0] for key in ("auc_interval", "gain_interval")}
    assert width["gain_interval"] < 0.7 * width["auc_interval"]
    same = by_probability(probability, {"id": scores["id"], "twin": 2 * scores["id"]}, seed=1, draws=20)
    assert same["twin"]["gain_interval"] == [0.0, 0.0]


def test_items_and_seeds_count_into_the_interval():
    """Every user is alike and so are the seeds in one case: what remains is the spread over items, or over seeds."""
    random = np.random.default_rng(0)
    rate = np.tile(random.uniform(0.1, 0.9, ITEMS), (USERS, 1))
    steady = np.tile(rate + 0.3 * random.normal(size=ITEMS), (SEEDS, 1, 1))
    by_item = by_probability(rate, {"id": steady}, seed=0, draws=100)["id"]
    assert np.diff(by_item["auc_interval"])[0] > 0.02

    label = (random.random(4000) < 0.5).astype(float)
    sizes = np.array([0.2, 0.6, 1.0, 1.4, 1.8])[:, None]
    shaky = sizes * label + random.normal(size=(SEEDS, 4000))
    user = np.arange(4000)
    low, high = variants.compare((user,), label, {"id": shaky}, seed=0)["id"]["auc_interval"]
    aucs = np.array([auc(label, row) for row in shaky])
    assert high - low == pytest.approx(2 * 1.96 * aucs.std(ddof=1) / np.sqrt(SEEDS), rel=0.3)


def test_clicks_agree_with_the_probabilities_that_drew_them():
    probability, scores = world()
    random = np.random.default_rng(3)
    copies = 5
    label = (random.random((copies, USERS, ITEMS)) < probability).reshape(-1)
    user = np.tile(np.repeat(np.arange(USERS), ITEMS), copies)
    flat = {name: np.tile(score.reshape(SEEDS, -1), copies) for name, score in scores.items()}
    clicks = variants.compare((user,), label.astype(float), flat, seed=1, draws=20)
    truth = by_probability(probability, scores, seed=1, draws=20)
    for name in scores:
        assert clicks[name]["auc"] == pytest.approx(truth[name]["auc"], abs=0.01)


def test_no_share_is_told_of_a_gap_that_is_not_shown():
    probability, scores = world(hint=0.0)
    result = variants.conclude(by_probability(probability, scores, seed=1, draws=50), VARIANTS, "on cold items")
    assert np.isnan(result["variants"]["half"]["share"])
    assert np.isnan(result["variants"]["half"]["share_interval"]).all()
    assert not any("give" in line for line in result["sentences"])
    same = {"id": scores["id"], "half": scores["half"], "truth": scores["id"]}  # a gap of zero to the last bit
    assert np.isnan(by_probability(probability, same, seed=1, draws=10)["half"]["share"])


def test_without_a_truth_variant_there_are_gains_alone():
    probability, scores = world()
    del scores["truth"]
    result = variants.conclude(by_probability(probability, scores, seed=1, draws=50), VARIANTS, "here")
    assert "share" not in result["variants"]["half"]
    assert len(result["sentences"]) == 2
    assert json.loads(json.dumps(result)) == result


def test_one_seed_still_has_an_interval():
    probability, scores = world()
    results = by_probability(probability, {name: score[:1] for name, score in scores.items()}, seed=1, draws=50)
    assert np.diff(results["half"]["auc_interval"])[0] > 0


def test_the_same_seed_gives_the_same_results():
    probability, scores = world()
    first, again, other = (by_probability(probability, scores, seed=seed, draws=20) for seed in (1, 1, 2))
    assert first == again
    assert first["half"]["gain_interval"] != other["half"]["gain_interval"]


def test_one_kind_of_click_tells_nothing():
    results = variants.compare((np.arange(9),), np.zeros(9), dict.fromkeys(("id", "half"), np.ones((2, 9))), seed=0)
    assert np.isnan(results["half"]["gain"])
    (line,) = variants.conclude(results, VARIANTS, "on cold items")["sentences"]
    assert line == "Half a hint: there is too little to tell an effect on AUC on cold items."


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.02, 0.04, "raise AUC here by 0.0300 (0.0200 to 0.0400)."),
        (-0.04, -0.02, "lower AUC here by 0.0300 (0.0200 to 0.0400)."),
        (-0.00001, 0.004, "have no shown effect on AUC here: the interval of the gain, 0.0000 to 0.0040, allows"),
    ],
)
def test_a_sentence_says_what_the_interval_allows(low, high, said):
    result = {"gain": (low + high) / 2, "gain_interval": [low, high]}
    assert variants.sentence("Xs", "here", result).startswith(f"Xs {said}")
    assert "give" not in variants.sentence("Xs", "here", result)


def test_a_control_is_bounded_by_its_share():
    result = {"gain": 0.001, "gain_interval": [-0.002, 0.004], "share": 0.02, "share_interval": [-0.04, 0.08]}
    assert variants.sentence("Xs", "here", result).count(", and at most 8% of what the true attributes give.") == 1


def test_the_examples_of_the_docstrings_hold():
    assert doctest.testmod(variants).failed == doctest.testmod(bootstrap).failed == 0


def test_a_gate_curve_goes_up_in_its_rate():
    results = {rate: {"auc": float(rate), "auc_interval": [0.0, 1.0], "seeds": []} for rate in ("1.0", "0.0", "0.25")}
    assert [point["rate"] for point in variants.gate_curve(results)] == [0.0, 0.25, 1.0]
    assert variants.gate_curve(results)[1] == {"rate": 0.25, "auc": 0.25, "interval": [0.0, 1.0]}


def test_a_gain_of_the_size_that_is_told_is_shown_four_times_in_five():
    random = np.random.default_rng(0)
    gain = bootstrap.least_shown([-1.96, 1.96])  # of a normal estimate with an error of 1
    estimates = gain + random.normal(size=100_000)
    assert np.mean(estimates - 1.96 > 0) == pytest.approx(0.8, abs=0.01)
    probability, scores = world()
    results = by_probability(probability, scores, seed=1, draws=50)
    line = variants.sentence("Nulls", "here", results["null"])
    assert f"A gain of {results['null']['least_shown']:.4f} would have been shown" in line
