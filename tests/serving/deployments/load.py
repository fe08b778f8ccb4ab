"""A service with two replicas in processes of its own, and clients that keep it at work."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psutil

from storage.run import RunDir
from tests.serving.test_local import tesserec

CONFIG = """
store: {store}
timeout_seconds: 60
service: {{min_replicas: 2, max_replicas: 2, num_cpus: 0.1}}
language_model: {{num_cpus: 0.1}}
"""


@contextmanager
def two_replicas(run: RunDir, place: Path, store: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`tesserec serve` with two replicas; gives its address and its process, which may be dead at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = place / "service.yaml"
    config.write_text(CONFIG.format(store=store))
    process = tesserec("serve", run.root, "--port", str(port), "--config", str(config), cwd=str(place))
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(f"Serving {run.root} at "), line + process.communicate()[1]
        yield f"http://127.0.0.1:{port}", process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=120)
    finally:
        kill_all(process)


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL to a process and all that it has started."""
    family = [] if process.poll() is not None else psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()
    psutil.wait_procs(family, timeout=30)


class Clients:
    """Threads that are at work for the length of a block.

    Attributes:
        failed: what went wrong.
        done: set when they are to stop.
    """

    def __init__(self, works: list[Callable[[], None]]) -> None:
        self.failed, self.done = list[Any](), threading.Event()
        self._threads = [threading.Thread(target=work) for work in works]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        for thread in self._threads:
            thread.join()
