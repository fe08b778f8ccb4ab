"""A function called every few seconds while something else runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def polled(poll: Callable[[], None], every_s: float) -> Iterator[None]:
    """Calls `poll` on a thread every few seconds while the body runs, and once more at its end."""
    done = threading.Event()

    def follow() -> None:
        while not done.wait(every_s):
            poll()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        poll()
