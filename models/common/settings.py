"""What all settings share: how they are validated, how a model is named and fitted, and what a backend is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from storage import files
from storage.errors import UserError

Place = Literal["cpu", "gpu", "model", "remote"]


def _folder_or_name(model: str) -> str:
    """Makes what starts like a path absolute, since workers stand elsewhere; other names are the hub's."""
    return str(Path(model).expanduser().resolve()) if model.startswith(("/", "./", "../", "~")) else model


Folder = Annotated[str, Field(min_length=1), AfterValidator(files.absolute)]
Precision = Literal["fp32", "bf16"]
ModelName = Annotated[str, Field(min_length=1), AfterValidator(_folder_or_name)]


class Settings(BaseModel):
    """Frozen settings; an unknown key, an infinity and a NaN are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


def read_text(path: str | Path, what: str) -> str:
    """Returns the text of a file of settings, at a path or an fsspec URI; `what` it is, for errors.

    Raises:
        UserError: there is no such file, it is no text, or its store does not give it.
    """
    uri = files.absolute(str(path))
    try:
        return (files.read_bytes(uri) if "://" in uri else Path(uri).read_bytes()).decode()  # fsspec reads no pipes
    except FileNotFoundError as error:
        raise UserError(f"There is no {what} at {path}: give its path from where you stand.") from error
    except Exception as error:  # object stores raise what they like
        raise UserError(f"{path} cannot be read as a {what}: {' '.join(str(error).split()).rstrip('.')}.") from error


def parse_yaml(text: str, source: str) -> Any:
    """Returns what a text in YAML says; `source` names it in errors.

    Raises:
        UserError: it is no YAML, or has a key twice.
    """
    try:
        _refuse_twice(yaml.compose(text, yaml.SafeLoader), source, seen=set())
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that does not exist is a ValueError
        raise UserError(f"{source} is not valid YAML: {' '.join(str(error).split())}.") from error


def _refuse_twice(node: yaml.Node | None, source: str, *, seen: set[int]) -> None:
    """Refuses keys that stand twice in one mapping, of which YAML takes the last one without a word."""
    if node is None or id(node) in seen:  # an alias stands for a node that was looked at
        return
    seen.add(id(node))
    lines: dict[tuple[str, str], int] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
            line, known = key.start_mark.line + 1, (key.tag, key.value)
            if known in lines:
                raise UserError(f"{source} has {key.value} twice, on lines {lines[known]} and {line}: keep one.")
            lines[known] = line
        _refuse_twice(value, source, seen=seen)
    for each in node.value if isinstance(node, yaml.SequenceNode) else ():
        _refuse_twice(each, source, seen=seen)


def key_lines(text: str, path: str) -> dict[str, str]:
    """Returns the `FILE:LINE` of every key of a text in YAML, and of every entry of its lists, by dotted path."""

    def below(node: yaml.Node | None, above: str) -> Iterator[tuple[str, str]]:
        entries: list[tuple[Any, yaml.Node, yaml.Node]] = []
        if isinstance(node, yaml.MappingNode):
            entries = [(key.value, key, value) for key, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            entries = [(at, each, each) for at, each in enumerate(node.value)]
        for key, written, value in entries:
            yield f"{above}{key}", f"{path}:{written.start_mark.line + 1}"
            yield from below(value, f"{above}{key}.")

    return dict(below(yaml.compose(text), ""))


def place_of(places: Mapping[str, str], key: str) -> str | None:
    """Returns the place of a key, or of its nearest parent that has one; None where none has."""
    while key and key not in places:
        key = key.rpartition(".")[0]
    return places.get(key)


class WarmStart(Settings):
    """What is left of a fit that goes on from the weights of an earlier run.

    Attributes:
        steps: share of its steps or epochs, at most.
        learning_rate: share of its learning rates.
    """

    steps: float = Field(0.25, gt=0, le=1)
    learning_rate: float = Field(0.5, gt=0, le=1)


class FitConfig(Settings):
    """How a recommender is fitted.

    The RQ-VAE and the ranker keep settings of their own: the first has no validation and another schedule of its
    learning rate, the second counts epochs and has two learning rates.

    Attributes:
        steps: optimizer steps at most; the state with the best validation NDCG@10 is kept.
        stop_at: the step whose state is kept in its place, and behind which the fit ends: a length that was chosen
            elsewhere. The learning rate is that of all `steps`, and validation has no say; null: as above.
        batch_size: users or documents of a step, over all workers together.
        learning_rate: peak of AdamW's, reached after `warmup` steps; half a cosine over the others takes it to a tenth.
        warmup: steps of linear warm-up; a tenth of the steps where it would leave none behind it.
        weight_decay: of matrices.
        validate_every: steps between two validations.
        valid_queries: queries of each validation, at most.
        patience: validations without a better NDCG@10 after which the fit ends.
        averaged: states with the best NDCG@10 whose average is tried at the end, and kept where it is better still; 1:
            none, as with `stop_at`. So many are held in memory by the first worker, and in what a killed fit resumes
            from.
        precision: of activations; `bf16` only where the hardware computes in it, see `devices.dtype_of`.
    """

    steps: int = Field(10_000, ge=1)
    stop_at: int | None = Field(None, ge=1)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(100, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    validate_every: int = Field(500, ge=1)
    valid_queries: int = Field(2_000, ge=1)
    patience: int = Field(5, ge=1)
    averaged: int = Field(1, ge=1)
    precision: Precision = "bf16"

    @model_validator(mode="before")
    @classmethod
    def _warms_up_within(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        steps, warmup = (given.get(name, cls.model_fields[name].default) for name in ("steps", "warmup"))
        short = isinstance(steps, int) and isinstance(warmup, int) and 0 < steps <= warmup
        return {**given, "warmup": steps // 10} if short else given

    @model_validator(mode="after")
    def _stops_within(self) -> FitConfig:
        if self.last_step > self.steps:
            raise ValueError(f"stop_at lies behind the last step: write {self.steps} or less, or raise steps")
        if self.stop_at is not None and self.averaged > 1:
            raise ValueError("a fit with stop_at is validated once, so it has no states to average: set averaged to 1")
        return self

    @property
    def last_step(self) -> int:
        """The step behind which a fit ends at the latest."""
        return self.stop_at or self.steps

    def warmed(self, warm: WarmStart) -> Self:
        """Returns what is left of the fit where it goes on from earlier weights."""
        steps = max(1, round(self.steps * warm.steps))
        changed = {
            "steps": steps,
            "stop_at": self.stop_at and max(1, round(self.stop_at * warm.steps)),
            "learning_rate": self.learning_rate * warm.learning_rate,
            "warmup": min(self.warmup, steps // 10),
            "validate_every": min(self.validate_every, steps),
        }
        return self.model_copy(update=changed)


class Backend:
    """A model that a definition chooses by its name, `backend`.

    Subclasses are frozen dataclasses. Their fields are the keys that a definition may write beside `backend`; the
    types and bounds in the annotations are checked there, and not where code makes a backend.

    Attributes:
        backend: the name.
        place: where the work is done: `cpu`; `gpu` if there is one; `remote` for a backend that mostly waits for a
            server; or `model`, which is like `gpu` but too large to be loaded once per CPU if there is no GPU.
    """

    backend: ClassVar[str]
    place: ClassVar[Place] = "cpu"

    def check(self) -> None:
        """Finds what is wrong before anything runs, as far as that is cheap.

        Raises:
            UserError: the model cannot work on this machine.
        """


@dataclass(frozen=True)
class Weights(Backend):
    """Weights of the user's choice, run in this process.

    Attributes:
        model: a folder, or a name on the Hugging Face hub.
        revision: branch, tag or commit on the hub.
        dtype: type of the weights: `float32`, `bfloat16`, `float16`, or `auto`.
    """

    model: ModelName
    _: KW_ONLY
    revision: str | None = None
    dtype: str = "auto"

    place = "model"

    def check(self) -> None:
        """Finds out whether the folder exists.

        Raises:
            UserError: there is no such folder.
        """
        if self.model.startswith("/") and not Path(self.model).is_dir():
            raise UserError(f"There is no model at {self.model}: give a folder, or a name on the Hugging Face hub.")
