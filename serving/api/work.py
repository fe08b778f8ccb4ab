"""How requests reach the run: through a bounded number of threads, queries for recommendations several at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import ParamSpec, TypeVar

from serving.api.errors import unavailable
from serving.api.served import Served
from serving.query import Answer, Query
from serving.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")


class Work:
    """The threads that ask a run, and the count of what is under way."""

    def __init__(self, served: Served, settings: Settings) -> None:
        self.served, self.under_way = served, 0
        self._most, self._max_batch = settings.max_in_flight, settings.max_batch
        self._new_threads = partial(ThreadPoolExecutor, settings.workers, thread_name_prefix="run")
        self._threads = self._new_threads()
        self._waiting: deque[tuple[Query, asyncio.Future[Answer]]] = deque()
        self._batches: asyncio.Task[None] | None = None

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Counts a request as under way for the length of a block.

        Raises:
            ApiError: too many are.
        """
        if self.under_way >= self._most:
            raise unavailable("overloaded", "The service has as many requests as it can take: try again in a moment.")
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    async def ask(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function of the run in a thread; one whose caller has gone counts as under way until it ends."""
        job = self._threads.submit(function, *args, **kwargs)
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            loop = asyncio.get_running_loop()
            self.under_way += 1
            job.add_done_callback(lambda _: loop.call_soon_threadsafe(self._left))
            raise

    async def recommend(self, query: Query) -> Answer:
        """Answers a query in one pass of the model with those that came while the pass before was under way."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((query, answer))
        if self._batches is None:
            self._batches = asyncio.create_task(self._answer())
        return await answer

    def close(self) -> None:
        """Lets the threads end; whoever asks afterwards gets new ones."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._threads = self._new_threads()

    def _left(self) -> None:
        self.under_way -= 1

    async def _answer(self) -> None:
        try:
            while self._waiting:
                count = min(self._max_batch, len(self._waiting))
                batch = [entry for entry in (self._waiting.popleft() for _ in range(count)) if not entry[1].done()]
                if batch and not await self._together(batch):
                    for entry in batch:  # one of them may spoil it for all
                        await self._together([entry])
        finally:
            self._batches = None

    async def _together(self, batch: list[tuple[Query, asyncio.Future[Answer]]]) -> bool:
        """Answers a batch; says whether each has its answer or, alone, its error."""
        try:
            answers = await self.ask(self.served.recommend, [query for query, _ in batch])
            pairs = list(zip(batch, answers, strict=True))
        except Exception as error:  # noqa: BLE001 - it is the asker's
            if len(batch) > 1:
                return False
            if not batch[0][1].done():
                batch[0][1].set_exception(error)
            return True
        for (_, future), answer in pairs:
            if not future.done():
                future.set_result(answer)
        return True
