"""Pools of actors: what an operator may ask for, what it gets when it asks for nothing, and whether all of it fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from operators.base import Operator
from storage.errors import UserError

# A stream's reads and writes, and the filter of a resumed one, need CPUs of their own: pools that fill all of them
# leave a stream that waits for ever.
READER_CPUS = 2
GPU_BATCH = 16
SHARES = (0.5, 0.25, 0.1)  # of a CPU, for actors that share what larger pools have left


class Pool(BaseModel):
    """Actors that run one operator.

    Attributes:
        min: actors that are started.
        max: actors that the pool may grow to; `min` where it is left out.
        num_cpus: CPUs, and torch threads, per actor; a GPU actor takes less than one CPU.
        num_gpus: GPUs per actor; may be a fraction.
        batch_size: rows per call.
        max_in_flight: blocks that wait at one actor, the one at work included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: int = Field(1, ge=1)
    max: int | None = Field(None, ge=1)
    num_cpus: float = Field(1.0, gt=0)
    num_gpus: float = Field(0.0, ge=0)
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
        """Actors at the most."""
        return self.min if self.max is None else self.max


Place = Literal["cpu", "gpu", "model", "remote"]
REMOTE = Pool(min=2, num_cpus=0.1, batch_size=64)


class Node(NamedTuple):
    """What one machine has for actors and tasks."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Step:
    """An operator of a stream.

    Attributes:
        name: its section of the definition.
        operator: what it does.
        pool: what it asks for; None leaves that to `plan`.
        place: where its work is done: on a `cpu`, on a `gpu` where there is one, or `remote`, so that it mostly waits.
            A `model` is like `gpu`, but too large to be held once per CPU where there is none.
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
        """The names of its operators."""
        return "+".join(step.name for step in self.steps)


def plan(steps: Sequence[Step], nodes: Sequence[Node], *, blocks: int) -> list[Group]:
    """Give every operator a pool.

    An operator with a pool of its own runs there. One that a GPU would serve gets an equal share of the GPUs, and one
    that waits for a server gets `REMOTE`, so that no CPU waits with it; a large model without a GPU gets one actor with
    half the CPUs of a node. All others run beside their neighbours: one actor per free CPU holds the whole run of them,
    so that pixels never leave the process that decoded them, and every CPU has work, whichever operator is slow.

    Args:
        steps: of the stream, in order.
        nodes: what there is.
        blocks: of rows to compute; actors beyond their number would have nothing to do.

    Raises:
        UnschedulableError: there is no room for what the definition asks for.
    """
    try:
        return _plan([_with_pool(step, steps, nodes) for step in steps], nodes, blocks)
    except UnschedulableError:  # GPUs that lie where no CPU is free
        without = [Node(node.cpus, 0) for node in nodes]
        return _plan([_with_pool(step, steps, without) for step in steps], nodes, blocks)


def _plan(steps: Sequence[Step], nodes: Sequence[Node], blocks: int) -> list[Group]:
    runs: list[list[Step]] = []
    for step in steps:
        if step.pool is None and runs and runs[-1][-1].pool is None:
            runs[-1].append(step)
        else:
            runs.append([step])
    asked = [Group(tuple(run), run[0].pool) for run in runs if run[0].pool]
    check_fits(asked, nodes)
    cpus = int(sum(node.cpus for node in nodes))
    sizes = [Pool(min=actors) for actors in range(max(1, min(cpus - READER_CPUS, blocks)), 0, -1)]
    for shared in [*sizes, *(Pool(num_cpus=share) for share in SHARES)]:
        groups = [Group(tuple(run), run[0].pool or shared) for run in runs]
        try:
            check_fits(groups, nodes)
        except UnschedulableError:
            continue
        return groups
    others = ", ".join(step.name for step in steps if step.pool is None)
    if not asked:
        raise UnschedulableError(None, f"finds no CPU for {others}: {_room(nodes)}")
    largest = max(asked, key=lambda group: group.pool.largest * group.pool.num_cpus)
    raise UnschedulableError(largest, f"{_wish(largest.pool)} and leaves no CPU to {others}: {_room(nodes)}")


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
    """Pack every actor of every pool onto the nodes, the largest first, and keep CPUs for the readers.

    Raises:
        UnschedulableError: a pool cannot be placed.
    """
    free = [[node.cpus, node.gpus] for node in nodes]
    for _ in range(READER_CPUS):  # each a whole CPU of one node
        room = max(free, key=lambda node: (node[0] >= 1, -node[1], node[0]), default=[0.0, 0.0])
        if room[0] < 1:
            raise UnschedulableError(None, f"finds no CPUs for its readers: {_room(nodes)}")
        room[0] -= 1
    for group in sorted(groups, key=lambda group: (-group.pool.num_gpus, -group.pool.num_cpus)):
        pool = group.pool
        for placed in range(pool.largest):
            room_ = next((n for n in free if n[0] >= pool.num_cpus - 1e-9 and n[1] >= pool.num_gpus - 1e-9), None)
            if room_ is None:
                raise UnschedulableError(group, f"{_wish(pool)} and there is room for {placed}: {_room(nodes)}")
            room_[0] -= pool.num_cpus
            room_[1] -= pool.num_gpus


class UnschedulableError(UserError):
    """A pool that cannot be scheduled; `group` is None where there is no room even for the readers."""

    def __init__(self, group: Group | None, reason: str) -> None:
        super().__init__(reason)
        self.group = group


def _wish(pool: Pool) -> str:
    gpus = f" and {pool.num_gpus:g} GPUs" if pool.num_gpus else ""
    return f"asks for {pool.largest} actors of {pool.num_cpus:g} CPUs{gpus} each"


def _room(nodes: Sequence[Node]) -> str:
    cpus, gpus = sum(node.cpus for node in nodes) - READER_CPUS, sum(node.gpus for node in nodes)
    return (
        f"pools share {max(cpus, 0):g} CPUs and {gpus:g} GPUs on {len(nodes)} nodes, beside {READER_CPUS} CPUs that "
        "are kept for readers and the filter of a resumed stream"
    )
