"""The Ray cluster of a run: a local one started for it, or an existing one."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from storage import files
from storage.errors import UserError
from workflows.distributed.pools import READER_CPUS, Node

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("workflows", "serving", "operators", "models", "storage")
# In Ray's reading of gitignore patterns: everything but the code, whatever else a user keeps beside it. `/*` would
# leave out the repository itself, which is `.`.
EXCLUDES = ["/[!.]*", "/.?*", *(f"!/{name}{end}" for name in PACKAGES for end in ("", "/")), "__pycache__"]
LITTLE_SPACE = 100 << 20  # bytes; Ray does not start, and does not say why, where less is free

# Threads of a fit wait asleep: where another process holds a core, threads that spin for the one on it take its time.
WORKER_ENV = {"TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE"}


def connect(address: str, cpus: int) -> None:
    """Joins a Ray cluster, or starts one for this process; a second call does nothing.

    Workers get the repository's code as working directory. It comes first on their import path, so that a folder
    `models/` in the user's current directory shadows nothing.

    Args:
        address: `local`, `auto` (the cluster of this machine, or of the job that runs this), or `host:port`.
        cpus: logical CPUs of a local Ray: the machine's, or as many as the workers of a fit request, plus
            `READER_CPUS`. Pool sizes and torch threads bound what really runs at once.

    Raises:
        UserError: there is no cluster at the address, or Ray does not start.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # on by default, and can hang a start
    if address == "local":
        os.environ.update({name: value for name, value in local_settings(cpus).items() if name not in os.environ})
    import ray

    if ray.is_initialized():
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    init = partial(_init, address=address, log_to_driver=False, logging_level=logging.ERROR)
    env = {"working_dir": str(REPOSITORY), "excludes": EXCLUDES, "env_vars": WORKER_ENV}
    if address == "local":
        try:
            with _no_stderr():
                init(num_cpus=cpus, include_dashboard=False, runtime_env=env)
        except Exception as error:  # Ray raises plain ones
            said = " ".join(str(error).split())
            raise UserError(f"Ray did not start here ({said[:200]}): {_remedy(said)}.") from error
        return
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # a job brings its own working directory
    check_reachable(address)
    try:
        init(runtime_env=None if in_job else env)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"There is no Ray cluster at {address!r}: start one with `ray start --head`.") from error


def _init(**settings: Any) -> None:
    """Starts or joins Ray; SIGTERM keeps its handler, where Ray's own would print a stack and abort."""
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    ray.init(**settings)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _remedy(said: str) -> str:
    """Returns what helps a Ray that did not start, by what it said and by what this machine lacks."""
    temporary = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if "AF_UNIX" in said:
        return (
            f"the path of its temporary folder, {temporary}, is too long for sockets: set RAY_TMPDIR to a shorter one"
        )
    if "exceeds the maximum size" in said:
        return f"move what is no code out of the folders {', '.join(PACKAGES)} of {REPOSITORY}"
    for folder in (temporary, "/dev/shm"):  # noqa: S108 - where Ray keeps its objects
        if Path(folder).exists() and shutil.disk_usage(folder).free < LITTLE_SPACE:
            return f"{folder} is full: make room there" + (", or set RAY_TMPDIR" if folder == temporary else "")
    return "retry when the machine is less busy"


def nodes(address: str) -> list[Node]:
    """Returns what every node has and its address; a local one counts `READER_CPUS` in addition, see `connect`.

    Joins a remote cluster to list its nodes, and stays connected.

    Raises:
        UserError: there is no cluster at the address.
    """
    if address == "local":
        return [Node(cpus=len(os.sched_getaffinity(0)) + READER_CPUS, gpus=_local_gpus())]
    return [
        Node(
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            name=node["NodeManagerAddress"],
            labels=node.get("Labels", {}),
        )
        for node in _alive(address)
    ]


def _alive(address: str) -> list[dict[str, Any]]:
    connect(address, cpus=0)
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def check_reach(address: str, catalog: str, root: str, previous: str | None = None) -> None:
    """Asks every node of a cluster for the catalogue, the run before, and what this process writes into the run.

    Raises:
        UserError: a node does not reach one of them.
    """
    if len(alive := _alive(address)) == 1:  # this process runs there
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    root, places = files.absolute(root), [files.absolute(place) for place in (catalog, previous) if place]
    mark = files.join(root, f".{uuid.uuid4().hex}.tmp")
    files.write_bytes(mark, b"")
    look: Any = ray.remote(num_cpus=0)(_unreached)
    seats = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in alive]
    try:
        answers = ray.get([look.options(scheduling_strategy=seat).remote(*places, mark) for seat in seats])
    finally:
        files.remove(mark)
    for node, said in zip(alive, answers, strict=True):
        if said:
            raise UserError(
                f"Node {node['NodeManagerAddress']} does not reach {said.replace(mark, root)}: mount it there as here, "
                "send the variables that lead there with `tesserec submit --env`, or name another place."
            )


def _unreached(*places: str) -> str:
    """Returns the first place that this process does not reach, with the reason; "" where it reaches all."""
    for place in places:
        try:
            if not files.exists(place):
                return place
        except Exception as error:  # noqa: BLE001 - object stores raise what they like
            return f"{place} ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    return ""


def _local_gpus() -> int:
    if not Path("/proc/driver/nvidia").exists():  # spares most machines the import of torch
        return 0
    import torch

    return torch.cuda.device_count()


def check_reachable(address: str) -> None:
    """Tries to connect to host:port, because Ray itself would end the process if nothing listens there.

    Raises:
        UserError: the connection fails.
    """
    host, _, port = address.partition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"No Ray cluster answers at {address} ({error}): run `ray start --head` there.") from error


def local_settings(cpus: int) -> dict[str, str]:
    """Returns Ray's environment variables for one machine: no idle workers at the start, no metrics collection, and no
    watcher for preempted nodes in every fit."""
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
    """Hides the log level line that Ray's C++ prints on the terminal; errors are raised as exceptions."""
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
    """Connects for the length of a block; leaves a Ray running that was connected before."""
    import ray

    was_there = ray.is_initialized()
    connect(address, cpus)
    try:
        yield
    finally:
        if not was_there:
            ray.shutdown()
