"""Checks before any work: the catalogue, the run directory, stage names, models and pools."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from storage import files, tables
from storage.errors import UserError
from storage.manifest import Manifest, read_manifest
from workflows.catalogs.survey import survey
from workflows.distributed import cluster
from workflows.distributed.pools import READER_CPUS, Node, UnschedulableError, shown
from workflows.engine.definition import Definition
from workflows.engine.previous import check_previous
from workflows.engine.registry import ORDER, stage
from workflows.engine.stage import ContinuingConfig, StageConfig

LARGE = 1 << 40  # rows of a stream that gets as many actors as fit


def preflight(
    definition: Definition,
    root: str,
    start: str | None = None,
    until: str | None = None,
    address: str = "local",
    tell: Callable[[str], None] = lambda line: None,
    todo: Callable[[Manifest], Sequence[str]] = lambda manifest: ORDER,
) -> Manifest:
    """Checks a workflow before any work and returns the run's manifest, or a new one.

    Args:
        definition: the workflow.
        root: URI of the run directory.
        start, until: first and last stage to run.
        address: the Ray cluster to use, see `cluster.connect`.
        tell: gets the lines of `Stage.check_data`.
        todo: says which stages are to run, whose models and pools are checked; by default all.

    Raises:
        UserError: the catalogue cannot be read, lacks what a stage needs, or its timestamps do not suit the split; the
            run directory belongs to another workflow or cannot be written, a stage name is unknown, a model cannot work
            on this machine, or the pools do not fit.
    """
    for option, named in (("--from", start), ("--until", until)):
        if named is not None and named not in definition.configs:
            raise UserError(f"{option} {named}: the stages of this workflow are {', '.join(definition.configs)}.")
    if start and until and ORDER.index(start) > ORDER.index(until):
        raise UserError(f"--from {start} comes after --until {until}: swap them.")
    for name, config in definition.configs.items():
        if isinstance(config, ContinuingConfig) and config.previous is not None:
            check_previous(config.previous, root, name)
    _check_log(definition)
    manifest = read_manifest(root) or Manifest(name=definition.name)
    if manifest.name != definition.name:
        raise UserError(
            f"{root} holds a run of the workflow {manifest.name!r}, not {definition.name!r}: choose another --run-dir."
        )
    files.probe(root, write=True)
    configs = {name: definition.configs[name] for name in todo(manifest) if name in definition.configs}
    if address != "local":
        cluster.check_reachable(address)
        cluster.check_reach(address, definition.catalog, root, definition.previous)
    else:  # on a cluster, models and keys are on its nodes
        for name, config in configs.items():
            stage(name).check(config, root)
    _check_pools(definition, configs, cluster.nodes(address))
    _check_data(definition, tell)  # reads whole tables, so what is cheaper to find is told before
    return manifest


def _check_log(definition: Definition) -> None:
    """Checks that the catalogue has the tables that the stages read and timestamps that suit the split."""
    tables.check(definition.catalog)
    from_log = [name for name, config in definition.configs.items() if config.reads_split()]
    if from_log and tables.find(definition.catalog, "interactions") is None:
        raise UserError(f"{definition.catalog} has no interactions table, {_without_log(definition, from_log)}.")
    if from_log and definition.split.kind == "time" and tables.timestamps(definition.catalog) == "order":
        raise UserError(
            "The timestamps of this catalogue only order the events of one user: write split: {kind: leave_last} at "
            "the top of the definition."
        )


def _without_log(definition: Definition, from_log: list[str]) -> str:
    """Says how a definition does without a log: what reads it goes, and what reads nothing else."""
    if "quantize" in from_log:
        return "which this quantizer learns from: set stages.quantize.method to rqvae"
    gone: list[str] = []
    for name in definition.configs:
        declared = stage(name)
        lacks_one = any(needed in gone for needed in declared.reads)
        lacks_all = bool(declared.reads_one_of) and all(
            needed in gone or needed not in definition.configs for needed in declared.reads_one_of
        )
        if name in from_log or lacks_one or lacks_all:
            gone.append(name)
    return f"which {', '.join(gone)} read: delete them from stages, or let `tesserec init` write a definition"


def _check_data(definition: Definition, tell: Callable[[str], None]) -> None:
    """Checks that the tables hold what the stages need, and tells what is left out where they do not."""
    ingest: Any = definition.configs.get("ingest")
    columns = {} if ingest is None else ingest.reading(definition.catalog).model_dump(include={"label", "media"})
    found = survey(definition.catalog, **columns)
    for name, config in definition.configs.items():
        for line in stage(name).check_data(config, found):
            tell(f"{name}: {line}")


def logical_cpus(definition: Definition, nodes: Sequence[Node]) -> int:
    """Returns the CPUs of a local Ray: enough for the workers of every fit, plus those for the readers."""
    needs = [sum(node.cpus for node in nodes) - READER_CPUS]
    for name, config in definition.configs.items():
        if (workers := stage(name).workers(config)) is not None:
            needs.append(workers.number * workers.cpus)
    return math.ceil(max(needs)) + READER_CPUS


def pools_shown(definition: Definition, nodes: Sequence[Node]) -> list[str]:
    """Returns one line per node, per pool with its actors and operators, and per fit with its workers."""
    named = [node for node in nodes if node.name]
    lines = [f"  {node.name}: {node.cpus:g} CPUs, {node.gpus:g} GPUs" for node in named]
    for name, config in definition.configs.items():
        for group in stage(name).groups(config, definition.catalog, nodes, rows=LARGE):
            pool = group.pool
            actors = str(pool.min) if pool.largest == pool.min else f"{pool.min} to {pool.largest}"
            gpus = f", {pool.num_gpus:g} GPUs" if pool.num_gpus else ""
            where = f", on nodes with {shown(pool.labels)}" if pool.labels else ""
            lines.append(
                f"  {name}: {actors} actors of {pool.num_cpus:g} CPUs{gpus}{where}, batches of {pool.batch_size}: "
                f"{group.name}"
            )
        if (workers := stage(name).workers(config)) is not None:
            room = sum(node.room(workers) for node in named)  # a Ray of this machine alone grows with its fits
            lacking = f", room for {room} now" if named and room < workers.number else ""
            lines.append(f"  {name}: {workers}{lacking}")
    return lines


def _check_pools(definition: Definition, configs: Mapping[str, StageConfig], nodes: Sequence[Node]) -> None:
    """Fails now if pools or fits do not fit onto the nodes: an unsatisfiable pool would block forever."""
    for name, config in configs.items():
        try:
            stage(name).groups(config, definition.catalog, nodes, rows=LARGE)
        except UnschedulableError as error:
            first = error.group.steps[0].name if error.group else ""
            written = first and getattr(config, first).pool is not None
            key = f"stages.{name}.{first}.pool" if written else f"stages.{name}"
            raise UserError(f"{definition.where(key)}: {key} {error}. Make the pools smaller, or add CPUs.") from error
        if (workers := stage(name).workers(config)) is None:
            continue
        key, needed = f"stages.{name}", workers.least or workers.number
        able = [node for node in nodes if node.has(workers.labels)]
        if not able:
            raise UserError(
                f"{definition.where(key)}: {key} asks for nodes with {shown(workers.labels)} and there are none: "
                "correct its labels, or start such nodes."
            )
        present = sum(node.gpus for node in able)
        if workers.gpu and needed > present:
            raise UserError(
                f"{definition.where(key)}: {key} asks for {needed} GPUs and there are {present:g}: use "
                "fewer GPUs, or run on a cluster with --address."
            )
