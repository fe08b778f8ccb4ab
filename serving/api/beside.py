"""What is done beside the requests, several at a time: answers on their way into the store, answers nobody sees."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from serving.api import logs

T = TypeVar("T")


class Beside(Generic[T]):
    """A queue and the thread that empties it. What does not fit, or goes wrong, is lost and counted.

    Args:
        name: of what waits, for the log.
        work: does it.
        lost: called with how many were lost.
        most: that wait.
        together: that are done at once.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Sequence[T]], None],
        lost: Callable[[int], None],
        *,
        most: int,
        together: int,
    ) -> None:
        self._name, self._work, self._lost, self._together = name, work, lost, together
        self._waiting: queue.Queue[T | None] = queue.Queue(most)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._empty, name=self._name, daemon=True)
        self._thread.start()

    def put(self, thing: T) -> None:
        """Takes a thing, and returns at once."""
        try:
            self._waiting.put_nowait(thing)
        except queue.Full:
            self._lost(1)

    def close(self) -> None:
        """Does what waits, and ends."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None

    def _empty(self) -> None:
        last = False
        while not last:
            batch = [self._waiting.get()]
            while len(batch) < self._together and batch[-1] is not None and not self._waiting.empty():
                batch.append(self._waiting.get())
            last = batch[-1] is None
            found = [each for each in batch if each is not None]
            try:
                self._work(found)
            except Exception as error:  # noqa: BLE001 - the thread goes on
                self._lost(len(found))
                logs.line(logging.ERROR, lost=self._name, number=len(found), error=logs.where(error))
