"""The Ray that a run works on: one of its own on this machine, or a cluster that is there already."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from storage.errors import UserError
from workflows.distributed.pools import READER_CPUS, Node

REPOSITORY = Path(__file__).resolve().parents[2]
# What a worker does not need of the repository; .gitignore is honoured beside this.
EXCLUDES = [".git", ".venv", ".venv-bench", "/runs", "/data", "/tests", "/benchmarks"]


def connect(address: str, cpus: int) -> None:
    """Join a Ray cluster, or start one for this process; a second call is a no-op.

    Workers get the repository as working directory: it stands first on their path, so that a folder `models/` where
    the user happens to stand shadows nothing.

    Args:
        address: `local`, `auto` (the cluster of this machine, or of the job that runs this), or `host:port`.
        cpus: logical CPUs of a local Ray: those of the machine, or what the workers of a fit ask for, and
            `READER_CPUS` on top. Pool sizes and torch threads bound what really runs at once.

    Raises:
        UserError: there is no cluster at the address, or none can be started.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # on by default, and can hang a start
    if address == "local":
        os.environ.update({name: value for name, value in local_settings(cpus).items() if name not in os.environ})
    import ray

    if ray.is_initialized():
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    init = partial(ray.init, address=address, log_to_driver=False, logging_level=logging.ERROR)
    env = {"working_dir": str(REPOSITORY), "excludes": EXCLUDES, "env_vars": {"TOKENIZERS_PARALLELISM": "false"}}
    if address == "local":
        try:
            with _no_stderr():
                init(num_cpus=cpus, include_dashboard=False, runtime_env=env)
        except Exception as error:  # Ray raises plain ones
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"Ray did not start here ({reason}): run again when less is at work.") from error
        return
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # a job brings its own working directory
    check_reachable(address)
    try:
        init(runtime_env=None if in_job else env)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"There is no Ray cluster at {address!r}: start one with `ray start --head`.") from error


def nodes(address: str) -> list[Node]:
    """What there is to run on. Of a local Ray the CPUs for readers come on top of the machine's, see `connect`.

    A cluster is joined for that, and stays joined.

    Raises:
        UserError: there is no cluster at the address.
    """
    if address == "local":
        return [Node(cpus=len(os.sched_getaffinity(0)) + READER_CPUS, gpus=_local_gpus())]
    connect(address, cpus=0)
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(cpus=found.get("CPU", 0.0), gpus=found.get("GPU", 0.0)) for found in alive]


def _local_gpus() -> int:
    if not Path("/proc/driver/nvidia").exists():  # spares most machines the import of torch
        return 0
    import torch

    return torch.cuda.device_count()


def check_reachable(address: str) -> None:
    """Knock at host:port; Ray itself would end the process where nobody listens.

    Raises:
        UserError: nobody does.
    """
    host, _, port = address.partition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"Nobody answers at {address} ({error}): start a cluster with `ray start --head`.") from error


def local_settings(cpus: int) -> dict[str, str]:
    """Ray's own settings for one machine: no idle workers at the start, no metrics that nobody collects, and no process
    that asks in every fit whether some of the nodes are to be taken away."""
    return {
        "RAY_prestart_worker_first_driver": "0",
        "RAY_worker_maximum_startup_concurrency": str(cpus),
        "RAY_enable_metrics_collection": "0",
        "RAY_task_events_report_interval_ms": "0",
        "RAY_event_stats": "0",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Keep Ray's C++ from announcing its log level on the terminal; its errors come as exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def connected(address: str, cpus: int) -> Iterator[None]:
    """`connect` for the length of a block; a Ray that was there before stays."""
    import ray

    was_there = ray.is_initialized()
    connect(address, cpus)
    try:
        yield
    finally:
        if not was_there:
            ray.shutdown()
