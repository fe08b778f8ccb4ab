import numpy as np
import polars as pl
import pytest

from benchmarks.seeds import pool

USERS = 400


def places(seed: int, *, better: float) -> pl.DataFrame:
    """Queries of which SASRec hits a fifth, and product codes so many times as many."""
    random = np.random.default_rng(seed)
    hits = random.random((2, USERS)) < np.array([[0.2], [0.2 * better]])
    user = np.arange(USERS)
    return pl.DataFrame({"user": user, "item": user % 7, "sasrec": hits[0] * 1, "product_codes": hits[1] * 3})


def test_a_figure_is_the_mean_of_the_runs_within_its_interval():
    runs = [places(seed, better=2) for seed in range(3)]

    found = pool(runs, "sasrec")["recommenders"]["product_codes"]

    each = [(run["product_codes"] > 0).mean() for run in runs]
    assert found["recall@10_seeds"] == each
    assert found["recall@10"] == pytest.approx(np.mean(each))
    assert found["ndcg@10"] == pytest.approx(np.mean(each) / 2)  # third place
    low, high = found["recall@10_interval"]
    assert low < found["recall@10"] < high


def test_a_ratio_is_told_from_one_where_the_recommenders_differ_and_only_there():
    apart = pool([places(seed, better=2) for seed in range(3)], "sasrec")["ratios"]["product_codes"]
    alike = pool([places(seed, better=1) for seed in range(3)], "sasrec")["ratios"]["product_codes"]

    assert apart["recall@10_interval"][0] > 1
    low, high = alike["recall@10_interval"]
    assert low < 1 < high


def test_runs_that_differ_widen_the_interval():
    same = [places(0, better=1)] * 3
    apart = [places(0, better=better) for better in (0.2, 1, 3)]

    widths = [
        np.diff(pool(runs, "sasrec")["recommenders"]["product_codes"]["recall@10_interval"]) for runs in (same, apart)
    ]

    assert widths[1] > 2 * widths[0]
