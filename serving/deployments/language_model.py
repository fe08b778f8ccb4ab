"""The language models of runs on replicas of their own, and what stands for one in the pipeline of another replica."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from serving.api.errors import unavailable
from serving.cascade import language_models
from serving.runs.rollout import started
from serving.settings import Settings
from serving.stores.opening import open_store
from storage.run import RunDir

KEPT = 3  # runs whose language models a replica keeps: two that are served side by side, and the next one


class Call(NamedTuple):
    """The arguments of a recommender's `recommend`, its run and name; see `models.common.recommender.Recommender`."""

    run: str
    name: str
    histories: Jagged
    k: int
    banned: Jagged
    allowed: torch.Tensor | None


@serve.deployment(max_constructor_retry_count=2)
class LanguageModel:
    """One replica: the recommenders that search with a language model, of the runs that are served.

    It has those of the runs that were asked for last, so that others can take their place while it answers.
    """

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        self._loading, self._asked = threading.Lock(), dict[str, float]()
        self._recommenders: dict[str, dict[str, Searcher]] = {}
        store = open_store(settings.store)
        for part in started(store, settings.run).rollout.runs:
            self._of(part.run)
        store.close()
        self.recommend.set_max_batch_size(settings.max_batch)  # type: ignore[attr-defined] # by the decorator

    async def prepare(self, run: str) -> None:
        """Loads the recommenders of a run, beside what is asked meanwhile.

        Raises:
            UserError: one is missing or damaged.
        """
        await asyncio.to_thread(self._of, run)

    @serve.batch(batch_wait_timeout_s=0.0)
    async def recommend(self, calls: list[Call]) -> list[Recommended]:
        """Answers in one search what came while the search before was under way."""
        return await asyncio.to_thread(together, self._of, calls)

    async def most(self, run: str, name: str) -> int:
        """Returns how many items a search finds at most."""
        return (await asyncio.to_thread(self._of, run))[name].most

    def _of(self, run: str) -> dict[str, Searcher]:
        """Returns the recommenders of a run; while they are loaded, others go on asking for what is there."""
        self._asked[run] = time.monotonic()
        found = self._recommenders.get(run)
        if found is None:
            with self._loading:
                if (found := self._recommenders.get(run)) is None:
                    found = searchers(run)
                    last = sorted(self._recommenders, key=lambda each: self._asked[each])[1 - KEPT :]
                    self._recommenders = {each: self._recommenders[each] for each in last} | {run: found}
        return found


def searchers(run: str) -> dict[str, Searcher]:
    """Loads the recommenders of a run that search with its language model, by name.

    Raises:
        UserError: one is missing or damaged.
    """
    place = RunDir(run)
    return {name: cast("Searcher", load(place.uri("models", "generator", name))) for name in language_models(place)}


def together(recommenders: Callable[[str], Mapping[str, Searcher]], calls: Sequence[Call]) -> list[Recommended]:
    """Answers calls by the recommenders of their runs; those that differ in their users alone share a search."""
    alike: dict[Any, list[int]] = defaultdict(list)
    for at, (run, name, _, k, _, allowed) in enumerate(calls):
        alike[run, name, k, None if allowed is None else allowed.numpy().tobytes()].append(at)
    answers: dict[int, Recommended] = {}
    with torch.inference_mode():
        for (run, name, k, _), places in alike.items():
            some = [calls[at] for at in places]
            histories, banned = chained([one.histories for one in some]), chained([one.banned for one in some])
            found = recommenders(run)[name].recommend(histories, k=k, banned=banned, allowed=some[0].allowed)
            sizes = [len(one.histories.offsets) - 1 for one in some]
            rows = torch.arange(sum(sizes)).split(sizes)
            answers.update((at, found.take(mine)) for at, mine in zip(places, rows, strict=True))
    return [answers[at] for at in range(len(calls))]


class Remote:
    """A recommender of the deployment above, called by its handle; a `Searcher`."""

    def __init__(self, run: str, name: str, replicas: DeploymentHandle, timeout: float) -> None:
        """Takes the URI of its run, its name, the deployment's handle, and the seconds that an answer may take."""
        self._run, self.name, self._replicas, self._timeout = run, name, replicas, timeout

    @cached_property
    def most(self) -> int:
        """See `models.common.recommender.Searcher`."""
        with _told():
            return cast("int", self._replicas.most.remote(self._run, self.name).result())

    def recommend(
        self, histories: Jagged, *, k: int, banned: Jagged | None = None, allowed: torch.Tensor | None = None
    ) -> Recommended:
        """See `models.common.recommender.Recommender`.

        Raises:
            ApiError: the deployment cannot answer now.
        """
        nothing = repeated(histories.values[:0], len(histories.offsets) - 1)
        call = Call(self._run, self.name, histories, k, nothing if banned is None else banned, allowed)
        with _told():
            return cast("Recommended", self._replicas.recommend.remote(call).result(timeout_s=self._timeout))

    def recommend_each(
        self, histories: Jagged, *, k: int, banned: Sequence[Jagged | None], allowed: torch.Tensor | None = None
    ) -> list[Recommended]:
        """See `models.common.recommender.Searcher`."""
        return [self.recommend(histories, k=k, banned=each, allowed=allowed) for each in banned]


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BackPressureError as error:
        raise unavailable("overloaded", "The language model has as many requests as it can take.") from error
    except (TimeoutError, RayActorError, DeploymentUnavailableError) as error:
        raise unavailable("timeout", "The language model did not answer in time: try again.") from error
