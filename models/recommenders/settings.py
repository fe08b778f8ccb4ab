"""Settings of the recommenders that are fitted, as a definition gives them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from models.common.llama import Tiny
from models.common.settings import FitConfig, Settings
from models.generation.backbones import Backbone, load_tokenizer
from models.generation.tasks import SEQUENCE, Task, load_tasks
from models.recommenders.product_codes import ProductCodes, ProductCodesConfig
from models.recommenders.rpg import Rpg, RpgConfig
from models.recommenders.sasrec import SasRecConfig
from storage.errors import UserError


class SasRecSettings(Settings):
    """The baseline that learns: SASRec."""

    model: SasRecConfig = SasRecConfig()
    fit: FitConfig = FitConfig()


class ItemKnnSettings(Settings):
    """The baseline by co-occurrence. Of what is tried, validation chooses.

    Attributes:
        neighbours: of an item that are kept, the numbers to try.
        shrinkages: added to the denominator of the cosine, the values to try.
        counted: items of a user that count, the last ones: the work grows with the square of it.
    """

    neighbours: tuple[Annotated[int, Field(ge=1)], ...] = Field((50, 200), min_length=1)
    shrinkages: tuple[Annotated[float, Field(ge=0)], ...] = Field((0, 10, 100), min_length=1)
    counted: int = Field(200, ge=2)


class CodesSettings(Settings):
    """The recommenders whose items are product codes.

    Attributes:
        codes: of an item; `codewords`: of each code, a power of two.
    """

    name: ClassVar[str]
    codes: int = Field(16, ge=1)
    codewords: int = Field(256, ge=2, le=256)

    @model_validator(mode="after")
    def _power_of_two(self) -> Self:
        if self.codewords & (self.codewords - 1):
            raise ValueError("codewords must be a power of two: write 16, 32, 64, 128 or 256")
        return self


class ProductCodesSettings(CodesSettings):
    """The recommender by product codes.

    Attributes:
        collaborative: weight of what users chose in training beside the embeddings, in what is quantised; 0: none.
        imputed: share of the items whose vector of what users chose is imputed, as it is of items that nobody has
            chosen, where codewords are learned; see `models.recommenders.build.quantize_items`.
        width: of the vectors of what users chose.
    """

    name = ProductCodes.kind
    model: ProductCodesConfig = ProductCodesConfig()
    collaborative: float = Field(1.0, ge=0)
    imputed: float = Field(0.1, ge=0, le=1)
    width: int = Field(128, ge=1)
    fit: FitConfig = FitConfig()

    @model_validator(mode="after")
    def _even_shares(self) -> Self:
        if self.model.dim % self.codes:
            even = max(codes for codes in range(1, self.codes) if self.model.dim % codes == 0)
            raise ValueError(f"each code has as many of the model's {self.model.dim} dimensions: write codes: {even}")
        return self


class RpgFitConfig(FitConfig):
    """How RPG is fitted: as by its authors on Amazon Beauty, 160 epochs at most, of which each is validated."""

    steps: int = Field(14_080, ge=1)
    batch_size: int = Field(256, ge=1)
    learning_rate: float = Field(0.01, gt=0)
    warmup: int = Field(10_000, ge=0)
    validate_every: int = Field(88, ge=1)
    valid_queries: int = Field(20_000, ge=1)
    patience: int = Field(20, ge=1)


class RpgSettings(CodesSettings):
    """RPG as published; what is quantised are the embeddings alone."""

    name = Rpg.kind
    model: RpgConfig = RpgConfig()
    codes: int = Field(32, ge=1)
    fit: RpgFitConfig = RpgFitConfig()


class EnsembleSettings(Settings):
    """An ensemble of recommenders that score every item.

    Attributes:
        of: its members.
        parts: validation chooses their weights among multiples of 1 / parts that add up to 1.
    """

    of: tuple[Literal["sasrec", "product_codes", "rpg"], ...] = Field(("sasrec", "product_codes"), min_length=2)
    parts: int = Field(4, ge=2, le=20)

    @model_validator(mode="after")
    def _each_once(self) -> EnsembleSettings:
        if len(set(self.of)) < len(self.of):
            raise ValueError("a member stands twice under of: name each one once")
        return self


def _of_registry(tasks: object) -> object:
    """Tasks in the place of their names, so that settings hold what is trained and not where it was read."""
    if tasks == "all":
        return tuple(task.model_copy(update={"optional": True}) for task in load_tasks())
    if isinstance(tasks, str):
        raise ValueError(f"write a list, [{tasks}], or all")
    named = isinstance(tasks, list | tuple) and len(tasks) > 0 and all(isinstance(each, str) for each in tasks)
    return load_tasks(tasks) if named else tasks  # type: ignore[arg-type]


class LanguageModelSettings(Settings):
    """The language model over semantic IDs.

    Attributes:
        backbone: the decoder.
        tasks: by name, or by the paths of YAML files of one's own; `all`: those of the registry that the catalogue has
            the texts for; empty: semantic IDs alone, without any text. The first of them that reads SIDs of a history
            and writes a SID recommends.
        schedule: `joint` draws all tasks throughout; `content_first` draws content tasks alone in the first quarter of
            the steps, recommending tasks alone in the second, and all from then on. A fit that goes on from earlier
            weights draws all of them throughout.
        main_share: of what is drawn, the share of the task that recommends; other tasks share the rest evenly.
        text_tokens: of the tokenizer that a decoder from scratch gets, trained on the catalogue's texts.
        max_text: tokens of a title or caption, at most.
        held_out: share of the items that the tasks about content do not train on, to be measured by.
        history: items that a prompt shows, the last ones.
        tokens_per_row: of packed documents; prompts show fewer of the last items where a row has no room for more.
        rows_per_pass: packed rows that go through the decoder at a time.
        beams: of the search; as many as there are items find the best of all.
    """

    backbone: Backbone = Tiny()
    tasks: Annotated[tuple[Task, ...], BeforeValidator(_of_registry)] = ()
    schedule: Literal["joint", "content_first"] = "joint"
    main_share: float = Field(0.5, gt=0, lt=1)
    text_tokens: int = Field(4096, ge=300)
    max_text: int = Field(32, ge=1)
    held_out: float = Field(0.05, ge=0, lt=1)
    history: int = Field(20, ge=1)
    tokens_per_row: int = Field(128, ge=8)
    rows_per_pass: int = Field(64, ge=1)
    beams: int = Field(50, ge=20)
    fit: FitConfig = FitConfig()

    @property
    def trained_tasks(self) -> tuple[Task, ...]:
        """The tasks that are trained: the named ones, or the one over semantic IDs alone."""
        return self.tasks or (SEQUENCE,)

    @property
    def recommending_task(self) -> Task:
        """The first task that reads the SIDs of a history and writes a SID."""
        return next(task for task in self.trained_tasks if task.inputs == ("sids",) and task.target == "sid")

    @model_validator(mode="after")
    def _tasks_suit(self) -> LanguageModelSettings:
        if not any(task.inputs == ("sids",) and task.target == "sid" for task in self.trained_tasks):
            raise ValueError("none of the tasks recommends: name sids_to_sid among them")
        if not self.tasks and not isinstance(self.backbone, Tiny):
            raise ValueError("a pretrained backbone without text has nothing to build on: name tasks, or take tiny")
        if not self.tasks and self.schedule == "content_first":
            raise ValueError("there is but one task without text: set schedule to joint, or name tasks")
        return self


def check_texts(tasks: Sequence[Task], lacking: Collection[str], key: str) -> list[str]:
    """Finds tasks over texts that a catalogue lacks.

    Args:
        tasks: of a definition.
        lacking: of `title` and `caption`, what no item has.
        key: of the tasks in the definition.

    Returns:
        A line that names the optional ones; nothing where there are none.

    Raises:
        UserError: the definition names one of them.
    """
    short = [task for task in tasks if task.columns & set(lacking)]
    for task in short:
        if not task.optional:
            missing = " and no ".join(sorted(task.columns & set(lacking)))
            raise UserError(f"{key} names {task.name}, and no item has a {missing}: take it out, or write `all`.")
    names = ", ".join(task.name for task in short)
    return [f"left out, since no item has a {' or a '.join(sorted(lacking))}: {names}"] if short else []


def check_backbone(settings: LanguageModelSettings) -> None:
    """Looks for a model that was trained before, as far as that is cheap.

    Raises:
        UserError: there is no such model within reach, or it is no language model.
    """
    if not isinstance(settings.backbone, Tiny):
        load_tokenizer(settings.backbone)


def check_codewords(settings: CodesSettings, items: int) -> None:
    """Checks that a catalogue is large enough for the codewords.

    Raises:
        UserError: it has one item, or fewer than codewords.
    """
    if items < 2:
        raise UserError("There is one item alone and nothing to choose from: leave generate out of the stages.")
    if items < settings.codewords:
        raise UserError(
            f"{items} items are too few for {settings.codewords} codewords: lower stages.generate.{settings.name}."
            f"codewords to {1 << (items.bit_length() - 1)} or less."
        )
