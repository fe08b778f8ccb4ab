from __future__ import annotations

import numpy as np
import pytest
import torch

from models.common.jagged import Jagged
from models.common.recommender import Queries, Recommended
from workflows.report import recommendations
from workflows.stages.evaluate.recommenders import judge

NAN = float("nan")
CARD = {
    "recall@5": 0.05,
    "ndcg@5": 0.03,
    "recall@10": 0.08,
    "ndcg@10": 0.04,
    "recall@20": 0.12,
    "ndcg@20": 0.05,
    "coverage@10": 0.5,
    "gini@10": 0.75,
    "fair_0.8@1": 0.25,
    "popularity_bias@10": 1.25,
    "cold_recall@10": NAN,
    "recall@10_interval": [0.07, 0.09],
    "ndcg@10_interval": [0.03, 0.05],
    "queries": 1200,
    "cold_queries": 7,
    "tail_queries": 300,
}
AS_IS = {**CARD, "recall@10": 0.06, "recall@10_interval": [0.05, 0.07], "gini@10": 0.5}
FOUND = {
    "generator": CARD,
    "product_codes": CARD,
    "popularity": {"auc": 0.6, "recall@10": 0.01, "ndcg@10": 0.005, "ndcg@10_interval": [None, None]},
    "retriever": {"recall@10": 0.2},
    "generator_over_popularity": {"ndcg@10": 8.0, "ndcg@10_interval": [6.0, 10.0], "recall@10": None},
}
TASKS = {
    "sids_to_sid": {"examples": 300, "exact@1": 0.1, "exact@1_interval": [0.05, 0.15], "loss": 2.0},
    "caption_to_sid": {
        "examples": 40,
        "exact@10": 0.5,
        "shuffled": {"exact@10": 0.125},
        "gain": {"exact@10": 0.375, "exact@10_interval": [0.25, 0.5]},
    },
    "caption_to_title": {
        "examples": 40,
        "token_f1": 0.25,
        "shuffled": {"token_f1": 0.25},
        "gain": {"token_f1": 0.0, "token_f1_interval": [-0.1, 0.1]},
    },
    "title_to_sid": {"examples": 0},
}


def test_every_recommender_stands_with_its_intervals_and_what_is_missing_is_a_dash():
    table = recommendations.scores(FOUND, "product_codes")
    assert table.columns == ["recommender", "recall@10", "95% interval", "NDCG@10", "95% interval"]
    assert table.rows == [
        ["product codes, chosen on validation", "0.0800", "0.0700 to 0.0900", "0.0400", "0.0300 to 0.0500"],
        ["popularity", "0.0100", "–", "0.0050", "–"],
    ]


def test_lists_as_is_stand_beside_masked_ones():
    found = {"sasrec": {**CARD, "as_is": AS_IS}, "truth": CARD}
    table = recommendations.scores(found, None)
    assert table.columns[5:] == ["recall@10 as is", "95% interval", "NDCG@10 as is", "95% interval"]
    assert table.rows[0][1:6] == ["0.0800", "0.0700 to 0.0900", "0.0400", "0.0300 to 0.0500", "0.0600"]
    assert table.rows[1][5:] == ["–", "–", "–", "–"]


def test_the_details_have_every_metric_of_either_kind():
    found = {"sasrec": {**CARD, "as_is": AS_IS}, "truth": CARD}
    masked, as_is = (recommendations.details(found, as_is=kind) for kind in (False, True))
    assert (masked.columns, as_is.columns) == (["metric", "SASRec", "truth"], ["metric", "SASRec"])
    shown = {row[0]: row[1:] for row in masked.rows}
    assert shown["NDCG@5"] == ["0.0300", "0.0300"]
    assert shown["cold recall@10"] == ["–", "–"]
    assert (shown["coverage@10"], shown["fair 0.8@1"]) == (["50.0%"] * 2, ["25.0%"] * 2)
    assert (shown["gini@10"], shown["popularity bias@10"]) == (["0.7500"] * 2, ["1.25"] * 2)
    assert shown["tail queries"] == ["300", "300"]
    assert not [metric for metric in shown if "interval" in metric]
    assert dict(as_is.rows)["gini@10"] == "0.5000"
    assert recommendations.details(FOUND, as_is=True) is None


def test_a_dot_is_drawn_where_there_is_an_interval():
    recall, ndcg = recommendations.score_figures(FOUND)
    assert recall.text == "product codes 0.0800 (0.0700 to 0.0900)"
    assert "popularity" not in ndcg.svg
    assert "NDCG@10" in ndcg.title


@pytest.mark.parametrize(
    ("ratio", "bounds", "verdict"),
    [
        (1.2, [1.1, 1.3], "NDCG@10 is higher, 1.20 times (1.10 to 1.30)"),
        (0.8, [0.7, 0.9], "NDCG@10 is lower, 0.80 times (0.70 to 0.90)"),
        (1.2, [0.99, 1.4], "NDCG@10 is not told apart, 1.20 times (0.99 to 1.40)"),
        (NAN, [NAN, NAN], "too little to compare NDCG@10"),
        (1.2, [None, None], "too little to compare NDCG@10"),
    ],
)
def test_a_sentence_says_no_more_than_the_interval_allows(ratio, bounds, verdict):
    over = {"ndcg@10": ratio, "ndcg@10_interval": bounds}
    (said,) = recommendations.sentences({"generator_over_sasrec": over})
    assert said == f"The generator beside SASRec: {verdict}; too little to compare recall@10."


def test_the_queries_are_counted():
    said = recommendations.sentences(FOUND)[-1]
    assert said.startswith("Queries over the whole catalogue: 1,200; 7 of them ask for an item without")


def test_what_the_statistics_find_is_what_the_page_shows():
    items = np.stack([np.random.default_rng(seed).permutation(30)[:20] for seed in range(40)])
    nothing = Jagged(torch.zeros(0, dtype=torch.int64), torch.zeros(41, dtype=torch.int64))
    test = Queries(np.arange(40), nothing, torch.from_numpy(items[:, 1].copy()), nothing)
    by_name = {"product_codes": np.roll(items, -1, axis=1), "sasrec": items, "content": items, "popularity": items}
    lists = {name: Recommended(torch.from_numpy(rows), torch.zeros(rows.shape)) for name, rows in by_name.items()}
    found = judge(lists, test, np.ones(30), np.zeros(30, bool), chosen="product_codes", seed=0)
    table = recommendations.scores(found, "product_codes")
    assert [row[0] for row in table.rows][1:] == ["SASRec", "content", "popularity"]
    assert all("–" not in row for row in table.rows)
    every = recommendations.details(found, as_is=False)
    assert {"gini@10", "fair 0.8@1", "tail NDCG@10", "tail queries"} < {row[0] for row in every.rows}
    assert {row[0] for row in every.rows if "–" in row} == {"cold recall@10", "cold NDCG@10"}
    said = recommendations.sentences(found)
    assert len(said) == 4
    assert all("NDCG@10 is higher, 1.58 times (1.58 to 1.58)" in sentence for sentence in said[:3])
    assert all("recall@10 is not told apart, 1.00 times" in sentence for sentence in said[:3])


def test_tasks_stand_beside_their_control():
    assert recommendations.tasks(TASKS).rows == [
        ["sids_to_sid", "the item is first", "300", "0.1000", "0.0500 to 0.1500", "–", "–", "–"],
        ["sids_to_sid", "loss, nats per token", "300", "2.0000", "–", "–", "–", "–"],
        ["caption_to_sid", "the item is among ten", "40", "0.5000", "–", "0.1250", "+0.3750", "0.2500 to 0.5000"],
        ["caption_to_title", "token F1", "40", "0.2500", "–", "0.2500", "+0.0000", "-0.1000 to 0.1000"],
    ]
    reads, unread = recommendations.task_sentences(TASKS)
    assert reads.startswith("caption_to_sid reads its captions: ")
    assert "+0.3750 (+0.2500 to +0.5000)" in reads
    assert unread.startswith("caption_to_title is not shown to read its captions: ")


def test_curves_are_those_of_what_was_reported():
    reports = [
        {"step": 5, "train_loss": 3.0},
        {"step": 10, "valid_ndcg@10": 0.25},
        {"step": 20, "valid_ndcg@10": 0.125},
    ]
    loss, ndcg = recommendations.training({"product_codes": reports, "other": [{"step": 1}]})
    assert (loss.title, ndcg.title) == (
        "product codes: training loss",
        "product codes: NDCG@10 on validation",
    )
    assert ndcg.text == "valid ndcg@10 from 0.2500 to 0.1250; step 10 to 20"
    assert "kept" in ndcg.svg


def test_the_pipeline_is_beside_the_best_on_its_own_queries() -> None:
    card = {"queries": 2000, "best": "item_knn", "over_best": 1.08, "over_best_interval": [0.98, 1.18]}
    (said,) = recommendations.sentences({"pipeline": card})
    assert said == (
        "The service's pipeline beside item-kNN, the best single recommender on its own 2,000 queries: "
        "NDCG@10 is not told apart, 1.08 times (0.98 to 1.18)."
    )
    assert recommendations.sentences({"pipeline": {**card, "over_best_interval": [None, None]}}) == []


def test_what_is_absent_is_left_out():
    assert recommendations.scores({"popularity": {"auc": 0.5}, "ranker": {}}, None) is None
    assert recommendations.details({}, as_is=False) is None
    assert recommendations.score_figures({}) == []
    assert recommendations.sentences({}) == []
    assert recommendations.tasks({}) is None
    assert recommendations.task_sentences({"title_to_sid": {"examples": 0}}) == []
    assert recommendations.training({}) == []
    assert recommendations.footnotes({}) == []


def test_the_share_of_exact_lists_stands_below_the_table():
    (said,) = recommendations.footnotes({"language_model": {**CARD, "exact_lists": 0.925}, "sasrec": CARD})
    assert said.startswith("Language model: 92.5% of its lists are proved to hold the best items")


def test_a_run_of_an_earlier_version_is_shown_under_the_names_of_today():
    over = {"ndcg@10": 1.2, "ndcg@10_interval": [1.1, 1.3]}
    old = {"generator": CARD, "parallel": CARD, "sequential": CARD, "itemknn": CARD, "generator_over_itemknn": over}
    table = recommendations.scores(old, "sequential")
    names = ["product codes", "language model, chosen on validation", "content"]
    assert [row[0] for row in table.rows] == names
    assert recommendations.sentences(old)[0].startswith("The generator beside content: NDCG@10 is higher, 1.20 times")
    (curve,) = recommendations.training({"sequential": [{"step": 5, "train_loss": 3.0}]})
    assert curve.title == "language model: training loss"
