"""The language model of a run on replicas of its own, and what stands for it in the pipeline of another replica."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from models.common.jagged import Jagged, chained, repeated
from models.common.recommender import Recommended, Searcher
from models.recommenders.artifacts import load
from serving.api.work import unavailable
from serving.settings import Settings
from storage.run import RunDir


class Call(NamedTuple):
    """The arguments of a recommender's `recommend`, and its name; see `models.common.recommender.Recommender`."""

    name: str
    histories: Jagged
    k: int
    banned: Jagged
    allowed: torch.Tensor | None


@serve.deployment(max_constructor_retry_count=2)
class LanguageModel:
    """One replica: the recommenders of a run that search with its language model, by name."""

    def __init__(self, settings: Settings, names: Sequence[str]) -> None:
        torch.set_num_threads(settings.threads)
        run = RunDir(settings.run)
        self.recommenders = {name: cast("Searcher", load(run.uri("models", "generator", name))) for name in names}
        self.recommend.set_max_batch_size(settings.max_batch)  # type: ignore[attr-defined] # by the decorator

    @serve.batch(batch_wait_timeout_s=0.0)
    async def recommend(self, calls: list[Call]) -> list[Recommended]:
        """Answers in one search what came while the search before was under way."""
        return await asyncio.to_thread(together, self.recommenders, calls)

    async def most(self, name: str) -> int:
        """Returns how many items a search finds at most."""
        return self.recommenders[name].most


def together(recommenders: Mapping[str, Searcher], calls: Sequence[Call]) -> list[Recommended]:
    """Answers several calls; those that differ in their users alone share a search."""
    alike: dict[Any, list[int]] = defaultdict(list)
    for at, (name, _, k, _, allowed) in enumerate(calls):
        alike[name, k, None if allowed is None else allowed.numpy().tobytes()].append(at)
    answers: dict[int, Recommended] = {}
    with torch.inference_mode():
        for (name, k, _), places in alike.items():
            some = [calls[at] for at in places]
            histories, banned = chained([one.histories for one in some]), chained([one.banned for one in some])
            found = recommenders[name].recommend(histories, k=k, banned=banned, allowed=some[0].allowed)
            sizes = [len(one.histories.offsets) - 1 for one in some]
            rows = torch.arange(sum(sizes)).split(sizes)
            answers.update((at, found.take(mine)) for at, mine in zip(places, rows, strict=True))
    return [answers[at] for at in range(len(calls))]


class Remote:
    """A recommender of the deployment above, called by its handle; a `Searcher`."""

    def __init__(self, name: str, replicas: DeploymentHandle, timeout: float) -> None:
        """Takes its name, the deployment's handle, and the seconds that an answer may take."""
        self.name, self._replicas, self._timeout = name, replicas, timeout

    @cached_property
    def most(self) -> int:
        """See `models.common.recommender.Searcher`."""
        return cast("int", self._replicas.most.remote(self.name).result())

    def recommend(
        self, histories: Jagged, *, k: int, banned: Jagged | None = None, allowed: torch.Tensor | None = None
    ) -> Recommended:
        """See `models.common.recommender.Recommender`.

        Raises:
            ApiError: the deployment cannot answer now.
        """
        nothing = repeated(histories.values[:0], len(histories.offsets) - 1)
        call = Call(self.name, histories, k, nothing if banned is None else banned, allowed)
        try:
            return cast("Recommended", self._replicas.recommend.remote(call).result(timeout_s=self._timeout))
        except BackPressureError as error:
            raise unavailable("overloaded", "The language model has as many requests as it can take.") from error
        except (TimeoutError, RayActorError, DeploymentUnavailableError) as error:
            raise unavailable("timeout", "The language model did not answer in time: try again.") from error

    def recommend_each(
        self, histories: Jagged, *, k: int, banned: Sequence[Jagged | None], allowed: torch.Tensor | None = None
    ) -> list[Recommended]:
        """See `models.common.recommender.Searcher`."""
        return [self.recommend(histories, k=k, banned=each, allowed=allowed) for each in banned]
