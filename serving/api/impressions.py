"""Answers on their way into the store: beside the requests, several at a time."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence

from serving.api import logs
from serving.stores.base import Impression

MOST = 10_000  # that wait
TOGETHER = 500  # that are written at once


class Impressions:
    """A queue and the thread that empties it. What does not fit, or cannot be written, is lost and counted.

    Args:
        show: writes impressions.
        lost: called with how many were lost.
    """

    def __init__(self, show: Callable[[Sequence[Impression]], None], lost: Callable[[int], None]) -> None:
        self._show, self._lost = show, lost
        self._waiting: queue.Queue[Impression | None] = queue.Queue(MOST)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._write, name="impressions", daemon=True)
        self._thread.start()

    def put(self, impression: Impression) -> None:
        """Takes an impression, and returns at once."""
        try:
            self._waiting.put_nowait(impression)
        except queue.Full:
            self._lost(1)

    def close(self) -> None:
        """Writes what waits, and ends."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None

    def _write(self) -> None:
        last = False
        while not last:
            batch = [self._waiting.get()]
            while len(batch) < TOGETHER and batch[-1] is not None and not self._waiting.empty():
                batch.append(self._waiting.get())
            last = batch[-1] is None
            found = [each for each in batch if each is not None]
            try:
                self._show(found)
            except Exception as error:  # noqa: BLE001 - the thread goes on
                self._lost(len(found))
                logs.line(logging.ERROR, impressions_lost=len(found), error=logs.where(error))
