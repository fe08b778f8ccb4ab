"""The runner: skips, resumes or reruns each stage of a workflow.

A stage's fingerprint is the hash of its settings, of the versions of its code, of the split of the log if it reads it,
and of the fingerprints of its inputs. Same and complete: skipped. Same and incomplete: resumed. Different: run anew.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import polars as pl

from storage import files, tables
from storage.errors import UserError
from storage.hashing import fingerprint
from storage.manifest import Manifest, StageEntry, read_manifest, write_manifest
from storage.run import RunDir
from workflows.distributed import cluster
from workflows.engine.console import Reporter
from workflows.engine.definition import Definition, dump
from workflows.engine.preflight import logical_cpus, preflight
from workflows.engine.previous import fingerprint_of
from workflows.engine.registry import ORDER, stage
from workflows.engine.stage import Context, ContinuingConfig, Result, StageConfig

BATCH_ROWS = 16_384  # of issues that are counted at once


def execute(
    definition: Definition, root: str, *, start: str | None = None, until: str | None = None, address: str = "local"
) -> Manifest:
    """Brings a run up to date with its definition and returns its manifest.

    Args:
        definition: the workflow.
        root: URI of the run directory.
        start: run this stage and all after it anew, even if they are complete.
        until: last stage to run.
        address: the Ray cluster to use, see `cluster.connect`.

    Raises:
        UserError: an error that the user can fix, raised before any work if possible.
    """
    root = files.absolute(root)  # workers have another current directory
    definition = definition.absolute()
    reporter, left_out, fingerprints = Reporter(), list[str](), dict[str, str]()

    def to_run(manifest: Manifest) -> list[str]:
        fingerprints.update(_fingerprints(definition))  # of inputs that preflight has found by then
        return _stages_to_run(definition, manifest, fingerprints, start, until)

    manifest = preflight(definition, root, start, until, address, left_out.append, to_run)
    for line in left_out:
        reporter.line(line)
    run, nodes = RunDir(root), cluster.nodes(address)
    with ExitStack() as stack:
        stack.enter_context(_only_driver(root))
        manifest = read_manifest(root) or manifest  # another driver may have written it before it let go of the lock
        todo = _stages_to_run(definition, manifest, fingerprints, start, until)
        _forget_stale(manifest, fingerprints, forced=start)
        manifest.left_out = left_out
        write_manifest(root, manifest)
        if not todo:
            reporter.line(f"Nothing to do: every stage of {root} is complete and up to date.")
            return manifest

        def connect() -> None:
            stack.enter_context(cluster.connected(address, logical_cpus(definition, nodes)))

        files.write_bytes(run.uri("workflow.yaml"), dump(definition).encode())
        if start is not None:
            for name in ORDER[ORDER.index(start) :]:  # also behind `until`: what is there is of other inputs
                files.remove(run.uri("checkpoints", name))
        for name, config in definition.configs.items():
            if name not in todo:
                if name in manifest.stages:
                    reporter.line(f"{name}: complete, skipped")
                continue
            if stage(name).workers(config) is not None:  # streams and pieces of work connect when they come to it
                connect()
            context = Context(
                run=run,
                catalog=definition.catalog,
                seed=definition.seed,
                fingerprint=fingerprints[name],
                log=reporter.line,
                progress=lambda done, total: None,
                nodes=nodes,
                split=definition.split,
                splits=any(other.reads_split() for other in definition.configs.values()),
                connect=connect,
            )
            _run_stage(name, config, context, manifest, reporter)
        files.remove(run.uri("checkpoints", "maps"))
    return manifest


def _stages_to_run(
    definition: Definition, manifest: Manifest, fingerprints: dict[str, str], start: str | None, until: str | None
) -> list[str]:
    todo = []
    for name in definition.configs:
        entry = manifest.stages.get(name, StageEntry())
        current = entry.state == "complete" and entry.fingerprint == fingerprints[name]
        forced = start is not None and ORDER.index(name) >= ORDER.index(start)
        if start is not None and not current and not forced:
            raise UserError(f"--from {start}: stage {name} before it is not complete: start without --from.")
        if forced or not current:
            todo.append(name)
        if name == until:
            break
    return todo


@contextmanager
def _only_driver(root: str) -> Iterator[None]:
    """Locks a local run directory against a second driver, which would append the same rows, until this process ends.

    Raises:
        UserError: another run holds the lock.
    """
    fs, path = files.filesystem(root)
    if "file" not in fs.protocol:
        yield
        return
    Path(path).mkdir(parents=True, exist_ok=True)
    with (Path(path) / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"Another run is at work in {root}: wait for it or choose another --run-dir.") from error
        yield


def _forget_stale(manifest: Manifest, fingerprints: dict[str, str], *, forced: str | None) -> None:
    """Sets stages to pending that are out of date, are about to be, or are no longer in the definition.

    This comes before any work, so that a run that ends early does not show them as complete.
    """
    manifest.stages = {name: manifest.stages[name] for name in ORDER if name in manifest.stages}
    for name, entry in manifest.stages.items():
        behind = forced is not None and ORDER.index(name) >= ORDER.index(forced)
        stale = entry.state == "complete" and (behind or entry.fingerprint != fingerprints.get(name))
        if stale or name not in fingerprints:
            entry.state, entry.error = "pending", ""


def _fingerprints(definition: Definition) -> dict[str, str]:
    fingerprints: dict[str, str] = {}
    for name, config in definition.configs.items():
        declared = stage(name)
        read = declared.reads + declared.reads_one_of
        inputs = [earlier for earlier in fingerprints if declared.reads_all or earlier in read]
        identity = {
            "stage": name,
            "version": declared.version,
            "uses": {used: stage(used).version for used in declared.uses(config)},
            "operators": {operator.__name__: operator.version for operator in declared.operators},
            "config": config.identity(),
            "seed": definition.seed if declared.seeded else None,
            "inputs": [fingerprints[needed] for needed in inputs] or tables.signature(definition.catalog),
        }
        if isinstance(config, ContinuingConfig) and config.previous is not None:
            identity["previous"] = fingerprint_of(config.previous, name)
        if config.reads_split():
            identity["split"] = definition.split.model_dump(mode="json")
        fingerprints[name] = fingerprint(json.dumps(identity, sort_keys=True))
    return fingerprints


def _run_stage(name: str, config: StageConfig, context: Context, manifest: Manifest, reporter: Reporter) -> None:
    root = context.run.root
    entry = StageEntry(
        state="running", fingerprint=context.fingerprint, started=datetime.now(UTC).isoformat(timespec="seconds")
    )
    manifest.stages[name] = entry
    manifest.stages = {known: manifest.stages[known] for known in ORDER if known in manifest.stages}
    write_manifest(root, manifest)
    began = time.monotonic()
    try:
        forget_other_attempts(context, name)
        with reporter.stage(name) as progress:
            result = stage(name).run(config, dataclasses.replace(context, progress=progress))
        reasons = _reasons(name, context.run) if result.rejected or result.degraded else {}
        _check_result(name, result, config, reasons)
        result = dataclasses.replace(result, metrics=files.as_read(result.metrics))  # what later readers will get
        entry.state, computed = "complete", result.rows_in - result.metrics.get("reused", 0)
        for field in dataclasses.fields(result):
            setattr(entry, field.name, getattr(result, field.name))
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, or SIGTERM
        entry.state, computed = "interrupted", 0
        raise
    except BaseException as error:
        entry.state, entry.error, computed = "failed", f"{type(error).__name__}: {error}"[:1000], 0
        raise
    finally:
        entry.seconds = round(time.monotonic() - began, 3)
        entry.rows_per_second = round(computed / max(entry.seconds, 1e-3), 1)
        write_manifest(root, manifest)
    files.remove(context.run.uri("checkpoints", name))
    parts = (("rejected", result.rejected), ("degraded", result.degraded))
    lost = "".join(f", {count} {what}{_why(reasons, what)}" for what, count in parts if count)
    reporter.line(
        f"{name}: {result.rows_out} rows{lost}, {entry.seconds:.1f} s, {entry.rows_per_second:.0f} rows per second"
    )


def forget_other_attempts(context: Context, stage: str) -> None:
    """Removes the state of attempts with other settings: what it says is written, this one is about to replace."""
    fs, path = files.filesystem(context.run.uri("checkpoints", stage))
    for name in fs.ls(path, detail=False) if fs.exists(path) else ():
        if name.rstrip("/").rsplit("/", 1)[-1] != context.fingerprint:
            fs.rm(name, recursive=True)


class _Reason(NamedTuple):
    """The commonest reason for which a stage rejected or degraded rows: `10 no_item_id`, and with an example."""

    short: str
    long: str


def _why(reasons: dict[str, _Reason], what: str) -> str:
    """Returns the commonest reason in brackets; nothing for rows of the log, which no table of rejects lists."""
    return f" ({reasons[what].short})" if what in reasons else ""


def _reasons(name: str, run: RunDir) -> dict[str, _Reason]:
    """Returns the commonest reason of each severity in a stage's rejects; rows may have several."""
    uri = run.uri("rejects", name)
    if not files.exists(uri):
        return {}
    groups = pl.DataFrame(schema={**dict.fromkeys(("severity", "code", "detail"), pl.String), "rows": pl.Int64})
    for batch in files.batches(uri, ["severity", "code", "detail"], BATCH_ROWS):
        both = pl.concat([groups, pl.DataFrame(batch).with_columns(rows=pl.lit(1, pl.Int64))])
        groups = both.group_by("severity", "code").agg(pl.col("detail").min(), pl.col("rows").sum())
    return {
        severity: _Reason(f"{rows} {code}", f"{rows} as {code} (such as {detail!r})")
        for severity, code, detail, rows in groups.sort("rows", "code", descending=[False, True]).iter_rows()
    }  # the last of a severity stays


def _check_result(name: str, result: Result, config: StageConfig, reasons: dict[str, _Reason]) -> None:
    if result.rows_in != result.rows_out + result.rejected:
        raise RuntimeError(f"stage {name} lost rows: {result}")
    for key, count, what in (
        ("max_reject_share", result.rejected, "rejected"),
        ("max_degraded_share", result.degraded, "degraded"),
    ):
        limit = getattr(config, key, None)
        if limit is not None and count > limit * result.rows_in:
            raise UserError(
                f"Stage {name} {what} {count} of {result.rows_in} rows, {reasons[what].long}, more than {key} = "
                f"{limit} allows: mend what rejects/{name} lists, then run with --from {name}, or raise "
                f"stages.{name}.{key}."
            )
