"""How many threads torch works with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[int]:
    """Lets torch work on one thread until the block ends: to share a small operation out takes longer than to do it.

    Gives the number of threads before. It is partly a setting of the process, partly one of the calling thread.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
