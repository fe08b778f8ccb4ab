"""The output of a running workflow on stderr: a progress bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LINE_EVERY_S = 10.0


class Reporter:
    """Prints the lines and the progress of one run."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)

    def line(self, text: str) -> None:
        """Prints one line, with the time of day if stderr is not a terminal."""
        stamp = "" if self._console.is_terminal else time.strftime("%H:%M:%S ")
        self._console.print(f"{stamp}{text}", markup=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[StageProgress]:
        """Yields the progress of one stage."""
        if not self._console.is_terminal:
            yield StageProgress(self, name, None)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as bar:
            yield StageProgress(self, name, bar)


class StageProgress:
    """Shows how many steps (rows, batches or epochs) of a total are done."""

    def __init__(self, reporter: Reporter, name: str, bar: Progress | None) -> None:
        self._reporter, self._name, self._bar = reporter, name, bar
        self._task = bar.add_task(name, total=None) if bar else None
        self._last = self._started = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Shows `done` of `total`; in a log at most every `LINE_EVERY_S` seconds."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif time.monotonic() - self._last >= LINE_EVERY_S:
            self._last = time.monotonic()
            rate = done / (self._last - self._started)
            self._reporter.line(f"{self._name}: {done} of {total} ({rate:.1f} per second)")
