"""What a stage is: its settings, what it reads, what it takes of the machine, and what it does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from models.common.settings import Settings
from operators.base import Operator
from operators.log.split import Split, SplitTime
from storage import files
from storage.run import RunDir
from workflows.distributed.pools import READER_CPUS, Group, Node


class StageConfig(Settings):
    """Settings of a stage; unknown keys are errors."""

    # Settings that change speed or limits, never results. A class that names its own names this one's, too.
    resources: ClassVar[frozenset[str]] = frozenset({"max_reject_share"})

    def identity(self) -> dict[str, Any]:
        """Return the settings that results depend on."""
        return self.model_dump(mode="json", exclude=set(self.resources))

    def reads_split(self) -> bool:
        """Tell whether the stage reads the log's split, `Context.split`, which then counts into its fingerprint."""
        return False


@dataclass(frozen=True)
class Context:
    """What a stage gets from the runner."""

    run: RunDir
    catalog: str  # URI of the catalogue, as the definition names it
    seed: int
    fingerprint: str  # a killed attempt leaves its work under this name, and the next one resumes it
    log: Callable[[str], None]  # one line for the user
    progress: Callable[[int, int], None]  # done, total
    nodes: Sequence[Node] = (Node(cpus=1 + READER_CPUS, gpus=0),)  # what streams may use
    split: Split = field(default_factory=SplitTime)  # of the log, one for all who learn from it


@dataclass(frozen=True)
class Result:
    """What a stage gives back for the manifest; rows_in = rows_out + rejected."""

    rows_in: int
    rows_out: int
    rejected: int = 0
    degraded: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs that the workers of a fit hold at once on Ray."""

    cpus: float
    gpus: float = 0.0


Config = TypeVar("Config", bound=StageConfig)


class Stage(ABC, Generic[Config]):
    """One step of a workflow; a stream of operators, a pass over the log, a fit, or an evaluation.

    Attributes:
        config_type: class of its settings.
        version: of the code that makes the results; raised when they change.
        reads: stages whose artifacts it reads; they must be in the definition.
        reads_one_of: of these stages at least one must be there; it reads all that are.
        reads_all: it looks back on every stage before it, so that all of them count into its fingerprint.
        uses: stages whose code it calls, so that their versions count into its fingerprint.
        operators: operator classes whose versions count into its fingerprint.
        seeded: whether the seed of the workflow changes its results.
    """

    config_type: type[Config]
    version: ClassVar[int]
    reads: ClassVar[tuple[str, ...]] = ()
    reads_one_of: ClassVar[tuple[str, ...]] = ()
    reads_all: ClassVar[bool] = False
    uses: ClassVar[tuple[str, ...]] = ()
    operators: ClassVar[tuple[type[Operator], ...]] = ()
    seeded: ClassVar[bool] = True

    def check(self, config: Config, root: str) -> None:
        """Find what cannot work on this machine for the run at `root`, before any stage runs.

        Raises:
            UserError: with what to change.
        """

    def resources(self, config: Config) -> Resources | None:
        """Return what its workers hold on Ray; None for a stage that fits nothing there."""
        return None

    def groups(self, config: Config, root: str, nodes: Sequence[Node], *, rows: int) -> list[Group]:
        """Return the operators of its stream in their pools; none for a stage that streams nothing.

        Args:
            root: URI of the catalogue.
            nodes: what the pools may use.
            rows: of the stream.

        Raises:
            UnschedulableError: a pool does not fit onto the nodes.
        """
        return []

    @abstractmethod
    def run(self, config: Config, context: Context) -> Result:
        """Read what earlier stages wrote under the run directory, and write its own artifacts there."""


def forget_other_attempts(context: Context, stage: str) -> None:
    """Remove what attempts with other settings have left under `checkpoints/STAGE`."""
    fs, path = files.filesystem(context.run.uri("checkpoints", stage))
    if fs.exists(path):
        for name in fs.ls(path, detail=False):
            if name.rstrip("/").rsplit("/", 1)[-1] != context.fingerprint:
                fs.rm(name, recursive=True)
