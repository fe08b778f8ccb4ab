"""What every stage file declares and receives.

A stage file in `workflows/stages/` has:

    VERSION: int               raised when results change
    INPUTS: tuple[str, ...]    stages whose artifacts it reads
    class Config(StageConfig)  its settings, with defaults; overrides `reads_split` where the stage does
    def run(config, context) -> Result

and, where it has them:

    SEEDED = False             the seed does not change its results (default: it does)
    OPERATORS                  operator classes whose `version` counts into the fingerprint
    EITHER: tuple[str, ...]    of these stages it needs at least one, and reads all that are there
    AFTER_ALL = True           it looks back on every stage that the definition names before it: all of them count into
                               its fingerprint, and none of them has to be there
    def groups(config, root, nodes, rows) -> list[Group]
                               the operators of its stream in their pools; raises what `pools.plan` raises
    def check(config, root)    finds what cannot work on this machine for the run at `root`, as a UserError
    def cpus(config) -> float  CPUs that its workers hold at once on Ray
    def gpus(config) -> float  GPUs, likewise
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from operators.log.split import Split, SplitTime
from storage import files
from storage.run import RunDir
from workflows.distributed.pools import READER_CPUS, Node


class StageConfig(BaseModel):
    """Settings of a stage; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Settings that change speed or limits, never results. A class that names its own names this one's, too.
    resources: ClassVar[frozenset[str]] = frozenset({"max_reject_share"})

    def identity(self) -> dict[str, Any]:
        """The settings that results depend on."""
        return self.model_dump(mode="json", exclude=set(self.resources))

    def reads_split(self) -> bool:
        """Whether the stage reads the log's split, `Context.split`, which then counts into its fingerprint."""
        return False


@dataclass(frozen=True)
class Context:
    """What a stage gets from the runner."""

    run: RunDir
    catalog: str  # URI of the catalogue, as the definition names it
    seed: int
    fingerprint: str  # work that is left under it by a killed attempt may be gone on from
    log: Callable[[str], None]  # one line for the user
    progress: Callable[[int, int], None]  # done, total
    nodes: Sequence[Node] = (Node(cpus=1 + READER_CPUS, gpus=0),)  # what streams may use
    split: Split = field(default_factory=SplitTime)  # of the log, one for all who learn from it


def forget_other_attempts(context: Context, stage: str) -> None:
    """Remove what attempts with other settings have left under `checkpoints/STAGE`."""
    fs, path = files.filesystem(context.run.uri("checkpoints", stage))
    if fs.exists(path):
        for name in fs.ls(path, detail=False):
            if name.rstrip("/").rsplit("/", 1)[-1] != context.fingerprint:
                fs.rm(name, recursive=True)


@dataclass(frozen=True)
class Result:
    """What a stage gives back for the manifest; rows_in = rows_out + rejected."""

    rows_in: int
    rows_out: int
    rejected: int = 0
    degraded: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
