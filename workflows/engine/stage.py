"""The interface of a stage: its settings, its inputs, its resources and its work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from models.common.settings import Folder, Settings
from operators.base import Operator
from operators.log.split import Split, SplitTime
from storage.run import RunDir
from workflows.catalogs.survey import Survey
from workflows.distributed.pools import READER_CPUS, Group, Node, Workers
from workflows.distributed.tasks import run_tasks

SMALL_CATALOGUE = 100_000  # items that the process of a run works on itself


class StageConfig(Settings):
    """Settings of a stage; unknown keys are errors."""

    resources: ClassVar[frozenset[str]] = frozenset()  # its settings that change speed or limits, never results

    def identity(self) -> dict[str, Any]:
        """Returns the settings that results depend on."""
        return self.model_dump(mode="json", exclude=set(self.resources))

    def reads_split(self) -> bool:
        """Returns whether the stage reads `Context.split`, which then counts into its fingerprint."""
        return False


class ContinuingConfig(StageConfig):
    """Settings of a stage that can build on what it left in an earlier run.

    Attributes:
        previous: that run; by default the `previous` of the definition. What it holds counts into the fingerprint, and
            where it lies does not.
    """

    previous: Folder | None = None

    def identity(self) -> dict[str, Any]:
        """Returns the settings without the place of the earlier run."""
        return {name: value for name, value in super().identity().items() if name != "previous"}


class WorkersConfig(StageConfig):
    """Settings of a stage that fits on Ray Train.

    Attributes:
        workers: processes of the fit, which run at once.
        least_workers: fewest that it begins with, or goes on with where a node is lost; by default all of them.
        cpus_per_worker, use_gpu: what each of them gets.
        worker_labels: that their nodes must have, such as `{"ray.io/accelerator-type": "A100"}`.
        checkpoint_s: seconds between two states that a killed fit goes on from.
    """

    resources: ClassVar[frozenset[str]] = frozenset(
        {"least_workers", "cpus_per_worker", "use_gpu", "worker_labels", "checkpoint_s"}
    )

    workers: PositiveInt = 1
    least_workers: PositiveInt | None = None
    cpus_per_worker: PositiveFloat = 1
    use_gpu: bool = False
    worker_labels: dict[str, str] = Field({})
    checkpoint_s: float = Field(60.0, ge=0)

    @model_validator(mode="after")
    def _at_least_some(self) -> Self:
        if self.least_workers is not None and self.least_workers > self.workers:
            raise ValueError(f"least_workers: {self.least_workers} is above workers: {self.workers}")
        if self.least_workers is not None and self.worker_labels:  # Ray would count the room on all nodes
            raise ValueError("least_workers goes without worker_labels: leave one of them out")
        return self

    @property
    def processes(self) -> Workers:
        """Returns the processes of the fit."""
        return Workers(self.workers, self.cpus_per_worker, self.use_gpu, self.least_workers, self.worker_labels)


@dataclass(frozen=True)
class Context:
    """The arguments that the runner passes to a stage."""

    run: RunDir
    catalog: str  # URI of the catalogue, as the definition names it
    seed: int
    fingerprint: str  # names the state of a killed attempt, which the next one resumes
    log: Callable[[str], None]  # one line for the user
    progress: Callable[[int, int], None]  # done, total
    nodes: Sequence[Node] = (Node(cpus=1 + READER_CPUS, gpus=0),)  # machines that streams may use
    split: Split = field(default_factory=SplitTime)  # split of the log, the same for all stages
    splits: bool = False  # whether a stage of the definition reads that split
    connect: Callable[[], None] | None = None  # joins or starts Ray; None: pieces of work run in this process

    def pieces(
        self,
        work: Callable[[Any], Any],
        keys: Iterable[str | int],
        *,
        name: str,
        here: bool,
        step: tuple[int, int] = (0, 1),
    ) -> list[Any]:
        """Runs pieces of a stage's work, on Ray or in this process; see `tasks.run_tasks`.

        Args:
            work: see there.
            keys: the argument of each call, mostly a number.
            name: folder of the results beside the stage's checkpoints.
            here: whether to run them in this process.
            step: number of this step and of all steps of the stage, for the progress.
        """
        if not here and self.connect is not None:
            self.connect()
        done, steps = step
        return run_tasks(
            work,
            [(key,) for key in keys],
            folder=self.run.uri("checkpoints", name),
            at_once=max(1, int(sum(node.cpus for node in self.nodes)) - READER_CPUS),
            failed=lambda key: f"Piece {key[0]} of {name} failed",
            progress=lambda count, of: self.progress(done * 100 + 100 * count // of, steps * 100),
            here=here or self.connect is None,
        )


@dataclass(frozen=True)
class Result:
    """Counts and metrics of a stage for the manifest; rows_in = rows_out + rejected."""

    rows_in: int
    rows_out: int
    rejected: int = 0
    degraded: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)


Config = TypeVar("Config", bound=StageConfig)


class Stage(ABC, Generic[Config]):
    """One step of a workflow: a stream of operators, a pass over the log, a fit, or an evaluation.

    Attributes:
        config_type: class of its settings.
        version: version of the code, raised when results change.
        reads: stages whose artifacts it reads; the definition must contain all of them.
        reads_one_of: stages whose artifacts it reads if present, which then count into its fingerprint as those of
            `reads` do; the definition must contain at least one of them.
        reads_all: whether it reads every stage before it, so that all of them count into its fingerprint.
        operators: operator classes whose versions count into its fingerprint.
        seeded: whether the seed of the workflow changes its results.
    """

    config_type: type[Config]
    version: ClassVar[int]
    reads: ClassVar[tuple[str, ...]] = ()
    reads_one_of: ClassVar[tuple[str, ...]] = ()
    reads_all: ClassVar[bool] = False
    operators: ClassVar[tuple[type[Operator], ...]] = ()
    seeded: ClassVar[bool] = True

    def uses(self, config: Config) -> tuple[str, ...]:
        """Returns the stages whose code it calls, so that their versions count into its fingerprint."""
        return ()

    def check(self, config: Config, root: str) -> None:
        """Checks, before any stage runs, that the stage can work on this machine for the run at `root`.

        Raises:
            UserError: it cannot; the sentence names what to change.
        """

    def check_data(self, config: Config, catalog: Survey) -> list[str]:
        """Checks, before any stage runs, that the catalogue has what the stage needs.

        Returns:
            A line for every part that is left out because the catalogue cannot feed it, or that is too large for it.

        Raises:
            UserError: the catalogue lacks what the stage cannot do without, or what the settings name.
        """
        return []

    def workers(self, config: Config) -> Workers | None:
        """Returns the processes of its fits on Ray; None for a stage that fits nothing there."""
        return None

    def groups(self, config: Config, root: str, nodes: Sequence[Node], *, rows: int) -> list[Group]:
        """Returns the operators of its stream in their pools; empty for a stage that streams nothing.

        Args:
            config: settings of the stage.
            root: URI of the catalogue.
            nodes: machines that the pools may use.
            rows: number of rows in the stream.

        Raises:
            UnschedulableError: a pool does not fit onto the nodes.
        """
        return []

    @abstractmethod
    def run(self, config: Config, context: Context) -> Result:
        """Reads the artifacts of earlier stages under the run directory and writes its own there."""
