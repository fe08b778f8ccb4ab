"""The controller against recommenders of drawn scores: 10 % of the places in lists of ten, out of 200 candidates.

`pytest tests/serving/rerank/test_exposure.py -s` prints what it costs in NDCG.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from serving.rerank.exposure import Controller
from serving.rerank.lists import standardised

TARGET, WINDOW, REQUESTS, SWAP = 0.1, 500, 3_000, 1_500


class Drawn(NamedTuple):
    """A recommender: the share of its candidates that is new, and how much lower or higher it scores these."""

    new: float
    lift: float


def simulated(recommenders: tuple[Drawn, Drawn], seed: int) -> tuple[np.ndarray, float]:
    """Returns the share of new items in each list, and the NDCG of the lists over that of lists without control."""
    random, controller = np.random.default_rng(seed), Controller()
    discount = 1 / np.log2(np.arange(2, 12))
    shares, gains = [], np.zeros(2)
    for request in range(REQUESTS):
        new, lift = recommenders[request >= SWAP]
        is_new = random.random(200) < new
        score = standardised(random.normal(size=200) + lift * is_new)
        liked = random.random(200) < 1 / (1 + np.exp(4 - 2 * score))  # scores tell what is liked
        lists = [np.argsort(-total)[:10] for total in (score + controller.bonus() * is_new, score)]
        best = discount[: max(1, min(10, liked.sum()))].sum()
        gains += [discount @ liked[items] / best for items in lists]
        controller.note(is_new[lists[0]], TARGET)
        shares.append(is_new[lists[0]].mean())
    return np.array(shares), gains[0] / gains[1]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "recommenders",
    [
        (Drawn(0.1, 0.0), Drawn(0.1, -1.5)),
        (Drawn(0.03, -1.0), Drawn(0.03, 1.0)),
        (Drawn(0.3, 1.5), Drawn(0.3, -2.5)),
    ],
)
def test_the_share_of_new_items_holds_and_is_back_after_another_recommender(recommenders, seed) -> None:
    shares, ratio = simulated(recommenders, seed)
    windows = np.convolve(shares, np.full(WINDOW, 1 / WINDOW), "valid")  # by their first request
    for settled in (windows[WINDOW : SWAP - WINDOW + 1], windows[SWAP + WINDOW :]):
        assert np.abs(settled - TARGET).max() <= 0.02
    print(f"\n{recommenders}: NDCG@10 is {ratio:.3f} of that without control")  # noqa: T201 - read with -s


def test_what_cannot_be_reached_does_not_wind_up() -> None:
    controller, none = Controller(), np.zeros(10, bool)
    for _ in range(10_000):
        controller.note(none, TARGET)
    assert 0 < controller.bonus() <= 10
    for _ in range(30):
        controller.note(~none, TARGET)
    assert controller.bonus() < 6
    controller.note(np.empty(0, bool), TARGET)
