"""Fits on Ray Train: runs one training loop on every worker and returns its reported metrics.

A loop is a module-level function `loop(config)`. It runs once per worker inside a torch process group (gloo on CPU,
nccl on GPU), reports with `report(...)` and writes its artifact on rank 0. A loop that reports its state resumes from
the last saved one, `restored()`, when a killed run is started again.
"""

from __future__ import annotations

import errno
import itertools
import json
import logging
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs
import ray.data
import ray.train
import ray.train.torch
import safetensors.torch
import torch
from ray.train import UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import RayTrainError  # what stands for a worker that died has no public name
from safetensors import SafetensorError

from models.common.collectives import broadcast
from storage import files
from storage.errors import UserError
from storage.run import RunDir
from workflows.distributed.polling import polled
from workflows.distributed.pools import Workers

POLL_S = 1.0
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
MOST_RESTARTS = 3  # of a fit whose workers die
STATE, HISTORY = "state.safetensors", "history.json"  # files of a checkpoint
T = TypeVar("T")

_log = logging.getLogger(__name__)
_history: list[dict[str, Any]] = []  # reports of this worker
_kept_at = 0.0  # monotonic time of the last saved state, in seconds


class TrainingError(RuntimeError):
    """A worker failed; the message names the fit, the rank and the exception."""


def fit(
    loop: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    workers: Workers,
    run: RunDir,
    name: str,
    datasets: dict[str, ray.data.Dataset] | None = None,
    progress: Callable[[dict[str, Any]], None] = lambda metrics: None,
) -> list[dict[str, Any]]:
    """Runs `loop(config)` on every worker of the running Ray cluster and returns the reports of rank 0, in order.

    Python, NumPy and torch are seeded with `config["seed"]` + rank and torch gets as many threads as a worker has CPUs
    before the loop starts. Where a worker dies, the fit begins again from its last state, up to `MOST_RESTARTS` times.
    A worker's exception ends it, unless it may go on with fewer workers: then it begins again after one, too, with as
    many of them as there is room for.

    Args:
        loop: module-level function, called as `loop(config)`.
        config: what can be pickled, including `seed`; it is sent to every worker, so pass the URIs of large data.
        workers: processes of the fit.
        run: the run whose `checkpoints/` folder receives the reported states.
        name: subfolder for them, `stage/fingerprint`. A fit resumes from the checkpoints under its name; the
            fingerprint separates configurations, and the runner removes the stage's folder when the stage ends.
        datasets: Ray Data sets to split among the workers, read by `ray.train.get_dataset_shard(name)`.
        progress: called in this process, on a separate thread, with rank 0's latest report about once a second.

    Raises:
        UserError: a worker raised one.
        TrainingError: anything else went wrong on a worker.
    """
    fs, path = files.filesystem(run.uri("checkpoints"))
    newest = run.uri("checkpoints", name, "newest.json")

    def attempt() -> list[dict[str, Any]]:
        # type checkers see the older Train V1 under these names, hence the ignores
        trainer = TorchTrainer(
            _per_worker,  # type: ignore[arg-type]
            train_loop_config={"loop": loop, "config": config, "threads": max(1, int(workers.cpus))},
            scaling_config=ray.train.ScalingConfig(  # type: ignore[call-arg]
                num_workers=workers.number if workers.least is None else (workers.least, workers.number),  # type: ignore[arg-type]
                use_gpu=workers.gpu,
                resources_per_worker={"CPU": workers.cpus, **({"GPU": 1} if workers.gpu else {})},
                label_selector=dict(workers.labels) or None,
            ),
            datasets=dict(datasets or {}),
            dataset_config=_AllRows() if datasets else None,  # unpickling it imports torch in another process
            run_config=ray.train.RunConfig(  # type: ignore[call-arg]
                name=name,
                storage_path=path,
                storage_filesystem=pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
                failure_config=ray.train.FailureConfig(max_failures=0 if workers.least is None else MOST_RESTARTS),
                logging_config=ray.train.LoggingConfig("ERROR"),
                callbacks=[_Newest(newest)],  # type: ignore[list-item]
            ),
        )
        reports: list[dict[str, Any]] = trainer.fit().return_value  # type: ignore[attr-defined]
        return reports

    with _interrupts_restored(), polled(_followed(newest, progress), POLL_S):
        for restarts in itertools.count():
            try:
                return attempt()
            except ray.train.WorkerGroupError as error:
                if restarts == MOST_RESTARTS or not some_died(error.worker_failures):
                    raise one_cause(name, error.worker_failures) from error
                _log.warning("%s: a worker died, and the fit goes on from its last state", name)
    raise AssertionError  # for the type checker


def device() -> torch.device:
    """Returns the device that Ray gave this worker."""
    chosen: torch.device = ray.train.torch.get_device()
    return chosen


def is_first() -> bool:
    """Tells whether this worker is rank 0, which writes the artifact."""
    return ray.train.get_context().get_world_rank() == 0


def shard(name: str, batch_rows: int) -> Iterator[pa.Table]:
    """Yields this worker's share of a data set of the fit, in batches."""
    yield from ray.train.get_dataset_shard(name).iter_batches(batch_size=batch_rows, batch_format="pyarrow")


def report(metrics: dict[str, Any], save: Callable[[Path], None] | None = None, *, every_s: float = 30.0) -> None:
    """Reports plain numbers from inside a loop. Every rank must call it equally often.

    Args:
        metrics: plain values.
        save: writes the state to resume from into a folder, each rank its own part.
        every_s: seconds after the last saved state until `save` is called again.
    """
    global _kept_at
    _history.append(metrics)
    if save is None or not _due(every_s):
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(folder)
        if is_first():
            (folder / HISTORY).write_text(json.dumps(_history))
        kept = ray.train.Checkpoint.from_directory(name) if any(folder.iterdir()) else None
        ray.train.report(metrics, checkpoint=kept)
    _kept_at = time.monotonic()


def _due(every_s: float) -> bool:
    """Returns rank 0's decision whether to save now, because every rank must write its part of the same state."""
    due = torch.tensor(time.monotonic() - _kept_at >= every_s, device=ray.train.torch.get_device())
    return bool(broadcast(due))


def restored(load: Callable[[Path], T]) -> T | None:
    """Returns `load(folder)` of the last state that a killed attempt saved, on every rank; None without one.

    The reports up to that state become part of this attempt's history.

    Raises:
        UserError: the state is damaged.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        try:
            _history[:] = json.loads((Path(folder) / HISTORY).read_text())
            return load(Path(folder))
        except (OSError, ValueError, LookupError, SafetensorError) as error:
            raise UserError(f"{checkpoint.path} is damaged, run again with --from and this stage: {error}") from error


def reported() -> list[dict[str, Any]]:
    """Returns the reports of this worker so far, including those before the state that it resumed from."""
    return list(_history)


def save_tensors(snapshot: Callable[[], dict[str, torch.Tensor]], folder: Path) -> None:
    """Writes rank 0's tensors as a state; the other ranks only take part in the snapshot."""
    tensors = snapshot()
    if is_first():
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        safetensors.torch.save_file(plain, folder / STATE)


def load_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Reads the state that `save_tensors` wrote."""
    return safetensors.torch.load_file(folder / STATE)


class _AllRows(ray.train.DataConfig):
    """Splits all rows among the workers, unevenly if needed, and the same way in every attempt.

    Ray Train's default drops the rows beyond equal shares, and shares that vary would change sums by rounding. The
    split depends on the number of CPUs, from which Ray Data derives its blocks.
    """

    def __init__(self) -> None:
        super().__init__(execution_options=ray.data.ExecutionOptions(preserve_order=True))

    def configure(
        self, datasets: dict[str, ray.data.Dataset], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, ray.data.DataIterator]]:
        """Returns one iterator per worker and data set."""
        shares: list[dict[str, ray.data.DataIterator]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            rows = dataset.copy(dataset)
            rows.context.execution_options = self._resolve_execution_options(name)
            for share, part in zip(shares, rows.streaming_split(world_size, equal=False), strict=True):
                share[name] = part
        return shares


def _per_worker(task: dict[str, Any]) -> list[dict[str, Any]]:
    seed = task["config"]["seed"] + ray.train.get_context().get_world_rank()
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries inside the loop may draw from the global state
    torch.manual_seed(seed)
    torch.set_num_threads(task["threads"])
    _history.clear()
    global _kept_at
    _kept_at = time.monotonic()
    task["loop"](task["config"])
    return _history


class _Newest(UserCallback):
    """Writes rank 0's latest report to a file; Ray Train calls it in its controller, a separate process."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        files.write_json(self._uri, metrics[0])


def _followed(uri: str, progress: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
    """Returns what calls `progress` with the content of a JSON file whenever it is new."""
    files.remove(uri)  # a killed attempt may have left one
    last = None

    def look() -> None:
        nonlocal last
        if files.exists(uri) and (newest := files.read_json(uri)) != last:
            progress(newest)
            last = newest

    return look


def is_fixable(error: BaseException) -> bool:
    """Tells whether the user can fix an error that a worker raised."""
    return isinstance(error, UserError) or (isinstance(error, OSError) and error.errno in NO_ROOM)


def some_died(failures: dict[int, Exception]) -> bool:
    """Tells whether one of the failed ranks has died, with its process or node, rather than raised something."""
    errors = failures.values()
    return any(isinstance(error, RayTrainError) for error in errors) and not any(map(is_fixable, errors))


def one_cause(name: str, failures: dict[int, Exception]) -> Exception:
    """Returns the exception to raise for failed ranks: one that the user can fix, or the first rank's by number."""
    causes = {rank: getattr(error, "_base_exc", error) for rank, error in sorted(failures.items())}
    rank = min(causes, key=lambda rank: (not is_fixable(causes[rank]), rank))
    return fixable_or(f"Training {name!r} failed on worker {rank}", causes[rank])


def fixable_or(failed: str, cause: Exception) -> Exception:
    """Returns an exception that the user can fix as it is, any other as a TrainingError that says what failed."""
    return cause if is_fixable(cause) else TrainingError(f"{failed}: {type(cause).__name__}: {cause}")


@contextmanager
def _interrupts_restored() -> Iterator[None]:
    """Restores the Ctrl-C handler: Ray Train leaves its own behind, which calls a controller that has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
