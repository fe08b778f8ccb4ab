from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import models.semantic_ids.quality
from models.semantic_ids.drift import drift
from models.semantic_ids.neighbours import neighbour_overlap
from models.semantic_ids.quality import (
    category_purity,
    collisions,
    decodability,
    known_prefixes,
    reconstruction,
    scorecard,
    usage,
)
from models.semantic_ids.quantizer import Architecture, Quantizer


def test_usage_of_a_known_case() -> None:
    codes = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    card = usage(codes, (2, 4))
    assert card["usage"] == [1.0, 0.5]
    assert card["dead_codes"] == [0, 2]
    assert card["perplexity"] == pytest.approx([2.0, 2.0])
    assert card["prefix_entropy"] == pytest.approx([1.0, 2.0])


def test_a_collapsed_level_shows() -> None:
    card = usage(np.zeros((100, 1), int), (256,))
    assert card["perplexity"] == [1.0]
    assert card["dead_codes"] == [255]


@given(arrays(np.int64, st.tuples(st.integers(1, 30), st.integers(1, 3)), elements=st.integers(0, 2)))
def test_collisions_equal_brute_force(codes: np.ndarray) -> None:
    rows = [tuple(row) for row in codes.tolist()]
    found = collisions(codes)
    assert found["share"] == pytest.approx(sum(rows.count(row) > 1 for row in rows) / len(rows))
    assert found["largest"] == max(rows.count(row) for row in rows)


@given(arrays(np.int64, st.tuples(st.integers(1, 30), st.integers(1, 3)), elements=st.integers(0, 4)))
def test_perplexity_and_entropy_stay_in_their_bounds(codes: np.ndarray) -> None:
    card = usage(codes, (5,) * codes.shape[1])
    for share, perplexity in zip(card["usage"], card["perplexity"], strict=True):
        assert 1 - 1e-9 <= perplexity <= 5 * share + 1e-9
    assert card["prefix_entropy"] == sorted(card["prefix_entropy"])
    assert card["prefix_entropy"][-1] <= math.log2(len(codes)) + 1e-9


def plain(*codebooks: list[list[float]]) -> Quantizer:
    """A quantizer over these codebooks, in the space of the embeddings."""
    sizes, width = tuple(len(words) for words in codebooks), len(codebooks[0][0])
    quantizer = Quantizer(Architecture("rqkmeans", width, sizes, width))
    quantizer.codebooks = torch.nn.ParameterList([torch.tensor(words) for words in codebooks])
    return quantizer.requires_grad_(False)


def attributes(rows: list[dict[str, str] | None]) -> pa.Array:
    pairs = [None if row is None else list(row.items()) for row in rows]
    return pa.array(pairs, pa.map_(pa.string(), pa.string()))


def test_scorecard_reports_depths_and_deduplication(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.semantic_ids.quality, "BLOCK_ROWS", 2)
    quantizer = plain([[3.0, 0, 0, 0], [-3.0, 0, 0, 0]], [[0, 1.0, 0, 0], [0, -1.0, 0, 0]])
    data = torch.tensor([[3.0, 1, 0, 0], [-3.0, -1, 0, 0], [3.0, 1, 0, 0]])
    codes = quantizer.encode(data)
    assert codes.tolist() == [[0, 0], [1, 1], [0, 0]]
    depth = reconstruction(quantizer, data, codes)
    assert depth["reconstruction_mse"] == pytest.approx([0.25, 0.0])
    assert depth["reconstruction_cosine"] == pytest.approx([3 / math.sqrt(10), 1.0])
    card = scorecard(quantizer, data, codes.numpy(), np.array([0, -1, 1]))
    assert (card["collision_share"], card["collision_share_after"]) == (pytest.approx(2 / 3), 0.0)
    assert card["largest_collision"] == 2
    assert scorecard(quantizer, data, codes.numpy(), np.full(3, -1))["collision_share_after"] == pytest.approx(2 / 3)
    assert card["category_purity"] == {}


def test_scorecard_measures_where_the_quantizer_does() -> None:
    generator = torch.Generator().manual_seed(0)
    words, inputs = torch.randn(40, 4, generator=generator), torch.randn(100, 4, generator=generator)
    quantizer = plain(words.tolist())
    quantizer.mean.fill_(3.0)
    quantizer.scale.fill_(2.0)
    data = 2 * inputs + 3  # far from the origin, where angles are others
    codes = quantizer.encode(data)
    card = scorecard(quantizer, data, codes.numpy(), np.arange(100))
    expected = neighbour_overlap(inputs, codes, lambda found: words[found[:, 0]], torch.arange(100))
    assert card["neighbour_overlap"] == pytest.approx(expected)
    cosine = torch.cosine_similarity(inputs, words[codes[:, 0]]).mean()
    assert card["reconstruction_cosine"] == pytest.approx([float(cosine)])


def test_purity_of_a_known_case_leaves_groups_of_one_out() -> None:
    codes = np.array([[0, 0], [0, 0], [0, 1], [0, 1], [0, 2], [1, 0], [1, 0], [1, 0], [1, 0], [2, 0], [2, 1]])
    kinds = ["a", "a", "a", "b", "b", "b", "b", None, None, "a", None]
    rows = [{} if kind is None else {"kind": kind, "name": str(row)} for row, kind in enumerate(kinds)]
    card = category_purity(codes, attributes(rows))
    assert list(card) == ["kind"]  # every item has a name of its own: that is no category
    kind = card["kind"]
    assert (kind["values"], kind["known"]) == (2, pytest.approx(8 / 11))
    # depth 1: {a a a b b} and {b b}; depth 2: {a a}, {a b}, {b b}
    assert kind["covered"] == pytest.approx([7 / 8, 6 / 8])
    assert kind["purity"] == pytest.approx([5 / 7, 5 / 6])


def test_purity_stands_beside_what_the_same_groups_show_by_chance() -> None:
    random = np.random.default_rng(0)
    codes = random.integers(0, 30, (600, 2))
    kinds = {"meant": codes[:, 0] % 3, "chance": random.integers(0, 3, 600)}
    rows = [{key: str(values[row]) for key, values in kinds.items()} for row in range(600)]
    card = category_purity(codes, attributes(rows), seed=1)
    assert card["meant"]["purity"] == [1.0, 1.0]
    for depth, by_chance in enumerate(card["meant"]["shuffled"]):
        assert card["chance"]["purity"][depth] == pytest.approx(by_chance, abs=0.06)
    assert card["chance"]["purity"][1] > card["chance"]["purity"][0] + 0.1  # small groups look pure by themselves
    assert card == category_purity(codes, attributes(rows), seed=1)


def test_categories_are_keys_that_most_items_have_with_few_values() -> None:
    rows = [{"colour": "red" if row % 2 else "blue", "shop": "one"} for row in range(20)]
    rows[3] |= {"rare": "x"}
    for row in range(11):
        rows[row] |= {"half": "ab"[row % 2], "many": str(row % 5)}
    without = [None, *rows[1:]]
    table = pa.chunked_array([attributes(without[:7]), attributes(without[7:])])
    card = category_purity(np.zeros((20, 1), int), table)
    assert {key: (found["values"], found["known"]) for key, found in card.items()} == {
        "colour": (2, 0.95),
        "half": (2, 0.5),
    }
    sliced = pa.concat_arrays([attributes([{"colour": "green"}]), attributes(without)]).slice(1)
    assert category_purity(np.zeros((20, 1), int), sliced) == card


def test_the_first_of_two_values_counts() -> None:
    pairs = [[("kind", "ab"[row % 2]), ("kind", "other")] for row in range(10)]
    codes = np.arange(10).reshape(-1, 1) % 2
    kind = category_purity(codes, pa.array(pairs, pa.map_(pa.string(), pa.string())))["kind"]
    assert (kind["values"], kind["known"], kind["purity"]) == (2, 1.0, [1.0])


def test_purity_without_a_group_of_two_is_no_number() -> None:
    rows = [{"kind": "ab"[row % 2]} for row in range(10)]
    kind = category_purity(np.arange(10).reshape(-1, 1), attributes(rows))["kind"]
    assert kind["covered"] == [0.0]
    assert math.isnan(kind["purity"][0])
    assert math.isnan(kind["shuffled"][0])


def test_known_prefixes_are_those_of_items_that_are_not_held_out() -> None:
    codes = np.random.default_rng(1).integers(0, 4, (60, 3))
    held = np.random.default_rng(5).permutation(60) % 10 == 0
    expected = []
    for depth in (1, 2, 3):
        known = {tuple(row[:depth]) for row in codes[~held]}
        expected.append(sum(tuple(row[:depth]) in known for row in codes[held]) / 6)
    assert known_prefixes(codes, seed=5) == pytest.approx(expected)
    assert expected[0] > expected[-1]
    assert known_prefixes(codes[:1]) == [0, 0, 0]


def test_attributes_are_named_where_codes_or_embeddings_tell_them() -> None:
    random = np.random.default_rng(0)
    kind, shade = random.integers(0, 3, 200), random.integers(0, 4, 200)
    codes = np.column_stack([kind, random.integers(0, 8, 200), shade])
    embeddings = torch.from_numpy(np.eye(4, dtype=np.float32)[shade])
    rows = [
        {"kind": f"k{k}", "shade": f"s{s}"} if n % 4 else {"kind": f"k{k}"}
        for n, (k, s) in enumerate(zip(kind, shade, strict=True))
    ]
    found = decodability(embeddings, codes, attributes(rows))
    assert list(found) == ["kind", "shade"]
    assert found["kind"]["codes"] == [1, 1, 1]
    assert found["kind"]["embedding"] < 0.6
    known = np.array(["shade" in row for row in rows])
    commonest = np.bincount(shade[known]).max() / known.sum()
    assert found["shade"]["codes"][0] < 0.5
    assert found["shade"]["codes"][2] == found["shade"]["embedding"] == 1
    assert abs(found["shade"]["commonest"] - commonest) < 0.15
    assert decodability(embeddings, codes, attributes([{}] * 200)) == {}


def test_codes_are_read_as_ridge_regression_on_indicators_reads_them() -> None:
    random = np.random.default_rng(2)
    codes, labels = random.integers(0, 3, (40, 2)), np.arange(40) % 4
    labels[random.random(40) < 0.5] = 0
    found = decodability(torch.zeros(40, 1), codes, attributes([{"kind": str(label)} for label in labels]))["kind"]
    folds, told = np.random.default_rng(0).permutation(40) % 4, 0
    columns = np.column_stack([codes[:, level : level + 1] == np.arange(3) for level in (0, 1)]).astype(float)
    for fold in range(4):
        rest, one = folds != fold, folds == fold
        mean = np.eye(4)[labels[rest]].mean(0)
        left = columns[rest].T @ columns[rest] + 0.1 * 2 * np.eye(6)
        weights = np.linalg.solve(left, columns[rest].T @ (np.eye(4)[labels[rest]] - mean))
        told += int(((columns[one] @ weights + mean).argmax(1) == labels[one]).sum())
    assert found["codes"][1] == pytest.approx(told / 40)


def clustered(rows: int, centres: range, seed: int) -> torch.Tensor:
    """Points around some of 24 fixed centres."""
    places = 2 * torch.randn(24, 16, generator=torch.Generator().manual_seed(99))
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(centres.start, centres.stop, (rows,), generator=random)
    return places[labels] + torch.randn(rows, 16, generator=random)


def residual_kmeans(data: torch.Tensor) -> Quantizer:
    """A quantizer of 3 × 16 codewords that has seen the data and nothing else."""
    quantizer = Quantizer(Architecture("rqkmeans", data.shape[1], (16, 16, 16), data.shape[1])).requires_grad_(False)
    quantizer.mean.copy_(data.mean(0))
    quantizer.scale.copy_((data - data.mean(0)).square().mean().sqrt())
    rest = quantizer.standardise(data)
    for codebook in quantizer.codebooks:
        codebook.copy_(rest[:16])
        for _ in range(10):
            code = torch.cdist(rest, codebook).argmin(1)
            sums, counts = torch.zeros_like(codebook).index_add_(0, code, rest), torch.bincount(code, minlength=16)
            codebook.copy_(torch.where(counts.unsqueeze(1) > 0, sums / counts.clamp_min(1).unsqueeze(1), codebook))
        rest = rest - codebook[torch.cdist(rest, codebook).argmin(1)]
    return quantizer


@pytest.mark.parametrize("old_rows", [200, 2_000])
@pytest.mark.parametrize("new_rows", [60, 1_000])
def test_drift_is_quiet_on_items_of_the_old_kind(old_rows: int, new_rows: int) -> None:
    for seed in range(6):
        old = clustered(old_rows, range(16), seed)
        found = drift(residual_kmeans(old), old, clustered(new_rows, range(16), 100 + seed), seed=seed)
        assert not found["refit"], found
        assert found["systematic_error"]["new"] < 0.07
        for now, by_chance in zip(found["divergence"]["new"], found["divergence"]["resampled"], strict=True):
            assert now < 2 * by_chance
    if old_rows == 200:  # no drift, though unseen items lose much more
        assert found["reconstruction_mse"]["new"] > 1.1 * found["reconstruction_mse"]["old"]


def test_drift_is_quiet_where_items_only_got_noisier() -> None:
    old = clustered(2_000, range(16), 0)
    new = clustered(1_000, range(16), 1)
    found = drift(residual_kmeans(old), old, new + torch.randn(new.shape, generator=torch.Generator().manual_seed(2)))
    assert found["reconstruction_mse"]["new"] > 1.3 * found["reconstruction_mse"]["old"]
    assert not found["refit"]


@pytest.mark.parametrize("new_rows", [60, 1_000])
def test_drift_speaks_up_for_new_kinds_of_items_and_is_calm_after_the_refit(new_rows: int) -> None:
    for seed in range(3):
        old, new = clustered(2_000, range(16), seed), clustered(new_rows, range(16, 24), 100 + seed)
        found = drift(residual_kmeans(old), old, new)
        assert found["refit"], found
        assert found["divergence"]["new"][0] > 2 * found["divergence"]["resampled"][0]
        low, high = found["systematic_error"]["interval"]
        assert 0.07 < low <= found["systematic_error"]["new"] <= high
        assert f"{found['systematic_error']['new']:.1%}" in found["reason"]
    everything = torch.cat([old, clustered(1_000, range(16, 24), 200)])
    assert not drift(residual_kmeans(everything), everything, new)["refit"]


def test_drift_speaks_up_for_a_shift_of_all_items() -> None:
    old, new = clustered(2_000, range(16), 0), clustered(500, range(16), 1)
    quantizer = residual_kmeans(old)
    assert drift(quantizer, old, new + 1.0)["refit"]
    assert drift(quantizer, old, new + 1.0) == drift(quantizer, old, new + 1.0)


def test_drift_does_not_blame_new_items_for_what_old_ones_suffer_from() -> None:
    quantizer = residual_kmeans(clustered(2_000, range(16), 0))
    old, new = clustered(2_000, range(16), 1) + 1.0, clustered(500, range(16), 2) + 1.0
    found = drift(quantizer, old, new)
    assert found["systematic_error"]["interval"][0] > 0.07
    assert not found["refit"]


def test_systematic_error_is_what_the_other_items_predict() -> None:
    new = clustered(60, range(16, 24), 0)
    quantizer = residual_kmeans(clustered(200, range(16), 1))
    codes = quantizer.encode(new)
    error = quantizer.standardise(new) - quantizer.standardise(quantizer.decode(codes))
    rows = range(60)
    rest = [error[i] - torch.stack([error[j] for j in rows if j != i]).mean(0) for i in rows]
    left = 0.0
    for i in rows:
        same = [rest[j] for j in rows if j != i and codes[j, 0] == codes[i, 0]]
        prediction = sum(same, torch.zeros(16)) / (len(same) + 10)
        left += float((rest[i] - prediction).square().sum())
    expected = 1 - left / float(error.square().sum())
    assert drift(quantizer, new, new)["systematic_error"]["new"] == pytest.approx(expected, abs=1e-5)


def test_drift_is_quiet_where_there_is_no_error_to_mend() -> None:
    old = clustered(16, range(16), 0)
    quantizer = plain((old + 1e-6).tolist())
    assert not drift(quantizer, old, old.repeat(10, 1))["refit"]


def test_drift_gives_the_figures_of_both_sides() -> None:
    quantizer = plain([[2.0, 0.0], [-2.0, 0.0]], [[0.0, 1.0], [0.0, -1.0]])
    old = torch.tensor([[2.0, 1.0], [2.0, -1.0], [-2.0, 1.0], [-2.0, -1.0]])
    new = torch.tensor([[4.0, 2.0], [4.0, 2.0]])
    found = drift(quantizer, old, new)
    assert found["reconstruction_mse"] == {"old": 0.0, "new": 2.5}
    assert found["reconstruction_cosine"] == {"old": pytest.approx(1), "new": pytest.approx(1)}
    assert found["usage"] == {"old": [1.0, 1.0], "new": [0.5, 0.5]}
    assert found["perplexity"] == {"old": [2.0, 2.0], "new": [1.0, 1.0]}
    # H(3/4, 1/4) - (1 + 0) / 2
    assert found["divergence"]["new"] == pytest.approx([0.3112781, 0.3112781])
    assert found["refit"] is None
    assert "2 new items are too few" in found["reason"]
    assert math.isnan(found["systematic_error"]["new"])
