"""Actor pools: their settings, their defaults, and the check that all of them fit onto the cluster."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.common.settings import Place
from operators.base import Operator
from storage.errors import UserError

# Reads, writes and the filter of a resumed stream need CPUs of their own: a stream whose pools take all CPUs blocks
# forever.
READER_CPUS = 2
GPU_BATCH = 16
SHARES = (0.5, 0.25, 0.1)  # CPUs per actor, tried in order where larger pools leave less than one CPU


class Pool(BaseModel):
    """Settings of the actors that run one operator.

    Attributes:
        min: actors at the start.
        max: actors that the pool may grow to; `min` by default.
        num_cpus: CPUs, and torch threads, per actor; below 1 for a GPU actor.
        num_gpus: GPUs per actor; may be a fraction.
        labels: that a node must have to run an actor, such as `{"ray.io/accelerator-type": "A100"}`.
        batch_size: rows per call.
        max_in_flight: blocks queued at one actor, including the one in work.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: int = Field(1, ge=1)
    max: int | None = Field(None, ge=1)
    num_cpus: float = Field(1.0, gt=0)
    num_gpus: float = Field(0.0, ge=0)
    labels: dict[str, str] = {}
    batch_size: int = Field(32, ge=1)
    max_in_flight: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Pool:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max: {self.max} is below min: {self.min}")
        if self.num_gpus and self.num_cpus >= 1:
            raise ValueError("a GPU actor must leave CPUs to the readers; write num_cpus: 0.5")
        if self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            raise ValueError("num_gpus above 1 must be whole")
        return self

    @property
    def largest(self) -> int:
        """Returns the maximum number of actors."""
        return self.min if self.max is None else self.max


REMOTE = Pool(min=2, num_cpus=0.1, batch_size=64)


class Node(NamedTuple):
    """CPUs, GPUs and labels of one machine, and its address in a cluster."""

    cpus: float
    gpus: float
    name: str = ""
    labels: Mapping[str, str] = MappingProxyType({})

    def has(self, labels: Mapping[str, str]) -> bool:
        """Returns whether it has all of some labels."""
        return labels.items() <= self.labels.items()

    def room(self, workers: Workers) -> int:
        """Returns how many of a fit's processes the node has room for, were it idle."""
        room = self.cpus // workers.cpus if self.has(workers.labels) else 0
        return int(min(room, self.gpus) if workers.gpu else room)


@dataclass(frozen=True)
class Workers:
    """The processes of a fit, which run at once.

    Attributes:
        number: of processes.
        cpus: CPUs, and torch threads, of each.
        gpu: whether each has a GPU.
        least: fewest that the fit begins with, or goes on with when nodes are lost; None for all.
        labels: that their nodes must have.
    """

    number: int
    cpus: float = 1.0
    gpu: bool = False
    least: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.number} workers of {self.cpus:g} CPUs{' and a GPU' * self.gpu}"


@dataclass(frozen=True)
class Step:
    """An operator of a stream.

    Attributes:
        name: its section of the definition.
        operator: the operator itself.
        pool: its actor pool; None lets `plan` choose one.
        place: where its work is done; see `models.common.settings.Backend`.
    """

    name: str
    operator: Operator
    pool: Pool | None = None
    place: Place = "cpu"


@dataclass(frozen=True)
class Group:
    """Operators that run one after the other in the actors of one pool."""

    steps: tuple[Step, ...]
    pool: Pool

    @property
    def name(self) -> str:
        """Returns the names of its operators, joined by `+`."""
        return "+".join(step.name for step in self.steps)


def plan(steps: Sequence[Step], nodes: Sequence[Node], *, blocks: int) -> list[Group]:
    """Assigns every operator to a pool.

    An operator with a configured pool keeps it. GPU operators share the GPUs equally. Remote operators get `REMOTE`, so
    that they occupy no whole CPU. A large model without a GPU gets one actor with half the CPUs of a node. Neighbouring
    operators without a pool run together, in one actor per free CPU: pixels never leave the process that decoded them,
    and every CPU has work, whichever operator is slow.

    Args:
        steps: operators of the stream, in order.
        nodes: machines of the cluster.
        blocks: blocks of rows to compute, an upper bound for the number of shared actors.

    Raises:
        UnschedulableError: the configured pools do not fit onto the nodes.
    """
    try:
        return _plan([_with_pool(step, steps, nodes) for step in steps], nodes, blocks)
    except UnschedulableError:  # the GPUs are on nodes without a free CPU
        without = [Node(node.cpus, 0) for node in nodes]
        return _plan([_with_pool(step, steps, without) for step in steps], nodes, blocks)


def _plan(steps: Sequence[Step], nodes: Sequence[Node], blocks: int) -> list[Group]:
    runs: list[list[Step]] = []
    for step in steps:
        if step.pool is None and runs and runs[-1][-1].pool is None:
            runs[-1].append(step)
        else:
            runs.append([step])
    fixed = [Group(tuple(run), run[0].pool) for run in runs if run[0].pool]
    check_fits(fixed, nodes)
    cpus = int(sum(node.cpus for node in nodes))
    sizes = [Pool(min=actors) for actors in range(max(1, min(cpus - READER_CPUS, blocks)), 0, -1)]
    for shared in [*sizes, *(Pool(num_cpus=share) for share in SHARES)]:
        groups = [Group(tuple(run), run[0].pool or shared) for run in runs]
        with suppress(UnschedulableError):
            check_fits(groups, nodes)
            return groups
    others = ", ".join(step.name for step in steps if step.pool is None)
    if not fixed:
        raise UnschedulableError(None, f"finds no CPU for {others}: {_room(nodes)}")
    largest = max(fixed, key=lambda group: group.pool.largest * group.pool.num_cpus)
    raise UnschedulableError(largest, f"{_request(largest.pool)} and leaves no CPU to {others}: {_room(nodes)}")


def _with_pool(step: Step, steps: Sequence[Step], nodes: Sequence[Node]) -> Step:
    if step.pool is not None or step.place == "cpu":
        return step
    if step.place == "remote":
        return replace(step, pool=REMOTE)
    gpus = sum(node.gpus for node in nodes) - sum(s.pool.largest * s.pool.num_gpus for s in steps if s.pool)
    waiting = sum(s.place in ("gpu", "model") and s.pool is None for s in steps)
    if gpus <= 0:
        half = max(1, int(max((node.cpus for node in nodes), default=0) - READER_CPUS) // 2)
        return step if step.place == "gpu" else replace(step, pool=Pool(num_cpus=half))
    share = 1.0 if gpus >= waiting else 1 / math.ceil(waiting / gpus)
    pool = Pool(min=max(1, int(gpus // waiting)), num_cpus=0.5, num_gpus=share, batch_size=GPU_BATCH)
    return replace(step, pool=pool)


def check_fits(groups: Sequence[Group], nodes: Sequence[Node]) -> None:
    """Checks that all actors fit onto the nodes beside the readers, placing the largest first.

    Raises:
        UnschedulableError: a pool cannot be placed.
    """
    free = list(nodes)
    for _ in range(READER_CPUS):  # each a whole CPU of one node
        at = max(range(len(free)), key=lambda at: (free[at].cpus >= 1, -free[at].gpus, free[at].cpus), default=None)
        if at is None or free[at].cpus < 1:
            raise UnschedulableError(None, f"finds no CPUs for its readers: {_room(nodes)}")
        free[at] = free[at]._replace(cpus=free[at].cpus - 1)
    for group in sorted(groups, key=lambda group: (-group.pool.num_gpus, -group.pool.num_cpus)):
        pool = group.pool
        for placed in range(pool.largest):
            at = next((at for at, node in enumerate(free) if _takes(node, pool)), None)
            if at is None:
                raise UnschedulableError(group, f"{_request(pool)} and there is room for {placed}: {_room(nodes)}")
            node = free[at]
            free[at] = node._replace(cpus=node.cpus - pool.num_cpus, gpus=node.gpus - pool.num_gpus)


def _takes(node: Node, pool: Pool) -> bool:
    """Returns whether a node has room for one more actor of a pool."""
    return node.has(pool.labels) and node.cpus >= pool.num_cpus - 1e-9 and node.gpus >= pool.num_gpus - 1e-9


class UnschedulableError(UserError):
    """A pool cannot be scheduled; `group` is None if even the readers do not fit."""

    def __init__(self, group: Group | None, reason: str) -> None:
        super().__init__(reason)
        self.group = group


def _request(pool: Pool) -> str:
    gpus = f" and {pool.num_gpus:g} GPUs" if pool.num_gpus else ""
    where = f" on nodes with {shown(pool.labels)}" if pool.labels else ""
    return f"asks for {pool.largest} actors of {pool.num_cpus:g} CPUs{gpus} each{where}"


def shown(labels: Mapping[str, str]) -> str:
    """Returns labels as a user writes them."""
    return ", ".join(f"{name}={value}" for name, value in labels.items())


def _room(nodes: Sequence[Node]) -> str:
    cpus, gpus = sum(node.cpus for node in nodes) - READER_CPUS, sum(node.gpus for node in nodes)
    return (
        f"pools share {max(cpus, 0):g} CPUs and {gpus:g} GPUs on {len(nodes)} nodes, beside {READER_CPUS} CPUs that "
        "are kept for readers and the filter of a resumed stream"
    )
