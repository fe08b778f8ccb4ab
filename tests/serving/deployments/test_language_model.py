from __future__ import annotations

import pytest
import torch
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from models.common.jagged import Jagged, repeated
from models.recommenders.artifacts import load
from serving.api.errors import ApiError
from serving.deployments.language_model import Call, Remote, together


def lists(*rows: list[int]) -> Jagged:
    values = torch.tensor([value for row in rows for value in row], dtype=torch.int64)
    return Jagged(values, torch.tensor([0, *map(len, rows)]).cumsum(0))


@pytest.fixture(scope="module")
def recommender(speaking_run):
    return load(speaking_run.uri("models", "generator", "language_model"))


def test_calls_that_share_a_search_get_what_they_get_alone(recommender, monkeypatch) -> None:
    allowed = torch.arange(60) % 2 == 0
    calls = [
        Call("r", "m", lists([3, 1], [4]), 5, lists([3, 1], []), None),
        Call("r", "m", lists([2]), 5, lists([7]), allowed),
        Call("r", "m", lists([9, 8, 7]), 5, lists([]), None),
        Call("r", "m", lists([9]), 3, lists([]), None),
    ]
    alone = [recommender.recommend(a.histories, k=a.k, banned=a.banned, allowed=a.allowed) for a in calls]
    searches, search = [], recommender.recommend

    def counted(histories, **more):
        searches.append(len(histories.offsets) - 1)
        return search(histories, **more)

    monkeypatch.setattr(recommender, "recommend", counted)
    for one, other in zip(together({"r": {"m": recommender}}.__getitem__, calls), alone, strict=True):
        assert one.items.tolist() == other.items.tolist()
        assert torch.allclose(one.scores, other.scores, atol=1e-4)
    assert sorted(searches) == [1, 1, 3]


class Away:
    """A handle whose deployment does not answer."""

    def __init__(self, error: Exception) -> None:
        self.recommend = self.most = self
        self._error = error

    def remote(self, *_: object) -> Away:
        return self

    def result(self, timeout_s: float | None = None) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("error", "code"),
    [(TimeoutError(), "timeout"), (RayActorError(), "timeout"), (BackPressureError(9, 9), "overloaded")],
)
def test_a_model_that_does_not_answer_is_told_as_such(error: Exception, code: str) -> None:
    away = Remote("r", "m", Away(error), 0.1)  # type: ignore[arg-type]
    for ask in (lambda: away.most, lambda: away.recommend(lists([1]), k=2, banned=repeated(torch.tensor([1]), 1))):
        with pytest.raises(ApiError) as caught:
            ask()
        assert (caught.value.status_code, caught.value.code, caught.value.headers) == (503, code, {"Retry-After": "1"})
