"""Independent pieces of work as Ray tasks, each with a file of its result: partitions of a log, variants of a fit."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from functools import partial
from itertools import chain
from typing import Any

from storage import files

Key = tuple[str | int, ...]


def run_tasks(
    work: Callable[..., Any],
    keys: Sequence[Key],
    *,
    folder: str,
    at_once: int,
    failed: Callable[[Key], str],
    progress: Callable[[int, int], None] = lambda done, total: None,
    here: bool = False,
) -> list[Any]:
    """Calls `work(*key)` for every key and returns the results in the order of the keys.

    A result is written to a file of its own once its call has ended; what an earlier attempt has written is not
    computed again. After a failure no further call starts, and those under way still write their results.

    Args:
        work: returns a JSON value. A module-level function or a `partial` of one, whose arguments are sent to the
            cluster once.
        keys: arguments of each call, which name its file, too.
        folder: URI of the files.
        at_once: maximum number of calls under way.
        failed: says which piece of work failed, for errors.
        progress: called with the number of finished calls and of all, once per call.
        here: call in this process, one after the other, without Ray.

    Raises:
        UserError: a call raised one.
        TrainingError: a call failed on Ray for another reason.
    """
    finished = dict[Key, Any]()
    for key in keys:
        with suppress(FileNotFoundError, ValueError):  # one that a crash of the machine has left damaged is none
            finished[key] = files.read_json(result_uri(folder, key))
    left = [key for key in keys if key not in finished]
    call = partial(_write_result, work, folder)
    ended = _run_here(call, left) if here else _run_on_ray(call, left, at_once, failed)
    with closing(ended) as tasks:  # an interrupt cancels what is under way at once
        for count, _ in enumerate(chain(finished, tasks), 1):
            progress(count, len(keys))
    return [finished[key] if key in finished else files.read_json(result_uri(folder, key)) for key in keys]


def result_uri(folder: str, key: Key) -> str:
    """Returns the URI of a call's result."""
    return files.join(folder, "-".join(map(str, key)) + ".json")


def _write_result(work: Callable[..., Any], folder: str, key: Key) -> None:
    files.write_json(result_uri(folder, key), work(*key))


def _run_here(call: Callable[[Key], None], keys: Sequence[Key]) -> Generator[Key, None, None]:
    for key in keys:
        call(key)
        yield key


def _run_on_ray(
    call: Callable[[Key], None], keys: Sequence[Key], at_once: int, failed: Callable[[Key], str]
) -> Generator[Key, None, None]:
    import ray
    import ray.exceptions

    from workflows.distributed.training import fixable_or

    task, shared = ray.remote(num_cpus=1)(_call), ray.put(call)
    waiting, failures, under_way = list(keys), list[Exception](), dict[Any, Key]()
    try:
        while under_way or (waiting and not failures):
            while waiting and len(under_way) < at_once and not failures:
                key = waiting.pop(0)
                under_way[task.remote(shared, key)] = key
            (ended,), _ = ray.wait(list(under_way), num_returns=1)
            key = under_way.pop(ended)
            try:
                ray.get(ended)
            except ray.exceptions.RayError as error:
                failures.append(fixable_or(failed(key), getattr(error, "cause", None) or error))
            else:
                yield key
    finally:
        for left in under_way:  # after an interrupt
            ray.cancel(left, force=True)
    if failures:
        raise failures[0]


def _call(call: Callable[[Key], None], key: Key) -> None:
    call(key)
