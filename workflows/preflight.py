"""What is looked at before any work: the catalogue, the run directory, stage names, and what the pools ask for."""

from __future__ import annotations

import os
from pathlib import Path

from storage import files
from storage.errors import UserError
from storage.manifest import Manifest, read_manifest
from workflows import cluster, tables
from workflows.definition import Definition
from workflows.stages import ORDER, stage_module
from workflows.streams import READER_CPUS


def preflight(
    definition: Definition, root: str, start: str | None = None, until: str | None = None, address: str = "local"
) -> Manifest:
    """Find what is wrong before any work; return the run's manifest, a new one where there is none.

    Raises:
        UserError: the catalogue cannot be read, the run directory belongs to another workflow or cannot be written, a
            stage name is unknown, or the machine lacks what the pools ask for.
    """
    for option, stage in (("--from", start), ("--until", until)):
        if stage is not None and stage not in definition.configs:
            raise UserError(f"{option} {stage}: the stages of this workflow are {', '.join(definition.configs)}.")
    if start and until and ORDER.index(start) > ORDER.index(until):
        raise UserError(f"--from {start} comes after --until {until}: swap them.")
    tables.check(definition.catalog, needs_interactions="features" in definition.configs)
    manifest = read_manifest(root) or Manifest(name=definition.name)
    if manifest.name != definition.name:
        raise UserError(
            f"{root} holds a run of the workflow {manifest.name!r}, not {definition.name!r}: choose another --run-dir."
        )
    _check_writable(root)
    if address == "local":
        _check_gpus(definition)
    else:
        cluster.check_reachable(address)
    return manifest


def logical_cpus(definition: Definition, stages: list[str]) -> list[int]:
    """CPUs that each stage holds at once on Ray, readers included; at least 1 for a list without such stages."""
    needs = [1]
    for name in stages:
        cpus = getattr(stage_module(name), "cpus", None)
        if cpus is not None:
            needs.append(int(cpus(definition.configs[name]) + 0.999) + READER_CPUS)
    return needs


def _check_writable(root: str) -> None:

    fs, path = files.filesystem(root)
    if "file" not in fs.protocol:
        return
    nearest = next(folder for folder in (Path(path), *Path(path).parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"The run directory {root} cannot be written: choose another --run-dir.")


def _check_gpus(definition: Definition) -> None:
    """A pool that waits for a GPU that this machine does not have would wait for ever."""
    asked = {
        name: module.gpus(config)
        for name, config in definition.configs.items()
        if hasattr(module := stage_module(name), "gpus") and module.gpus(config)
    }
    if not asked:
        return
    import torch

    present = torch.cuda.device_count()
    for name, gpus in asked.items():
        if gpus > present:
            raise UserError(
                f"Stage {name} asks for {gpus:g} GPUs and this machine has {present}: lower what it asks for, "
                "or run on a cluster with --address."
            )
