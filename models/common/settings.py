"""What all settings share: how they are validated, how they name a model, and what a backend is."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from storage.errors import UserError

Place = Literal["cpu", "gpu", "model", "remote"]


def _folder_or_name(model: str) -> str:
    """Make what starts like a path absolute, since workers stand elsewhere; other names are the hub's."""
    return str(Path(model).expanduser().resolve()) if model.startswith(("/", "./", "../", "~")) else model


ModelName = Annotated[str, Field(min_length=1), AfterValidator(_folder_or_name)]


class Settings(BaseModel):
    """Frozen settings; an unknown key, an infinity and a NaN are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


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
        """Find what is wrong before anything runs, as far as that is cheap.

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
        """Find out whether the folder exists.

        Raises:
            UserError: there is no such folder.
        """
        if self.model.startswith("/") and not Path(self.model).is_dir():
            raise UserError(f"There is no model at {self.model}: give a folder, or a name on the Hugging Face hub.")
