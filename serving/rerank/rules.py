"""The file of rules: what it may say, and how it is read again when it changes."""

from __future__ import annotations

import difflib
import logging
import threading
import time
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError

from models.common.mistakes import explain, mistaken_key
from models.common.settings import Settings, key_lines, parse_yaml, place_of, read_text
from serving.catalogue import Catalogue
from serving.filters import Where
from serving.settings import MAX_K
from storage import files
from storage.errors import UserError

RELEVANCE, NOVELTY = "relevance", "novelty"  # objectives that are no attributes
LOOK_SECONDS = 1.0  # between two looks at the file
BROKEN = "The file of rules is broken, so that the rules of before hold: the log says what is wrong."
LOG = logging.getLogger("tesserec.rules")


class Boost(Settings):
    """Items whose score is multiplied, and then added to."""

    where: Where
    factor: float = Field(1.0, gt=0)
    add: float = 0.0


class Pin(Settings):
    """An item that has a place, from 1, in every list; or in the answers to requests with just this `where`."""

    item: str
    position: int = Field(ge=1, le=MAX_K)
    where: Where | None = None


class Cap(Settings):
    """How many items may share a value of an attribute among places 1 to `of`, among the next as many, and so on."""

    attribute: str
    most: int = Field(ge=1)
    of: int = Field(10, ge=1, le=MAX_K)


class Exposure(Settings):
    """The share of places that items have which were first seen less than so many days ago."""

    target: float = Field(gt=0, lt=1)
    days: float = Field(14.0, gt=0)


def _some_weight(weights: dict[str, float]) -> dict[str, float]:
    if not any(weights.values()):
        raise ValueError(f"give one of the objectives a weight, such as `{RELEVANCE}: 1`")
    return weights


class Rules(Settings):
    """What is asked of every list that `recommend` gives; see docs/serving.md.

    Attributes:
        boosts: one after the other.
        objectives: weights of `relevance`, which is the score, of `novelty`, and of attributes that are numbers.
        exposure: of new items.
        pins: the first one that names a place or an item has it.
        caps: all of them hold, as long as candidates are left that obey them.
        diversity: from 0 to 1; the share of a candidate's greatest cosine with what stands in the list.
        exploration: share of the places whose items are drawn.
    """

    boosts: tuple[Boost, ...] = ()
    objectives: Annotated[dict[str, float], AfterValidator(_some_weight)] = Field({RELEVANCE: 1.0})
    exposure: Exposure | None = None
    pins: tuple[Pin, ...] = ()
    caps: tuple[Cap, ...] = ()
    diversity: float = Field(0.0, ge=0, le=1)
    exploration: float = Field(0.0, ge=0, le=1)


def read_rules(path: str, catalogue: Catalogue) -> Rules:
    """Reads a file of rules for a catalogue.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown, a value has the wrong type or is out of range, or
            no item has an attribute that an objective or a cap names.
    """
    text = read_text(path, "file of rules")
    raw = parse_yaml(text, path) or {}
    if not isinstance(raw, dict):
        raise UserError(f"{path} must be a YAML mapping with keys such as boosts, pins and caps.")
    places = key_lines(text, path)
    try:
        rules = Rules.model_validate(raw)
    except ValidationError as error:
        place = place_of(places, mistaken_key(error, Rules)) or path
        raise UserError(f"{place}: {explain(error, Rules, {})}") from error
    needed = {f"caps.{at}.attribute": cap.attribute for at, cap in enumerate(rules.caps)}
    objectives = [name for name in rules.objectives if name not in (RELEVANCE, NOVELTY)]
    for key, name in (needed | {f"objectives.{name}": name for name in objectives}).items():
        if name not in catalogue.names:
            near = difflib.get_close_matches(name, [RELEVANCE, NOVELTY, *catalogue.names], n=1)
            hint = f"did you mean {near[0]}?" if near else "GET /v1/attributes names some that there are."
            raise UserError(f"{place_of(places, key)}: no item has an attribute {name!r}; {hint}")
        if key.startswith("objectives") and not catalogue.has_numbers(name):
            raise UserError(f"{place_of(places, key)}: {name} of no item is a number: leave this objective out.")
    return rules


class RulesFile:
    """A file of rules that may change while it is used; several threads may ask at once.

    Attributes:
        problem: one sentence where the file is broken by now, with nothing of what it says; None where all is well.
    """

    def __init__(self, path: str, catalogue: Catalogue) -> None:
        """Reads it; see `read_rules`."""
        self._path, self._catalogue = path, catalogue
        self._lock, self._looked, self._mark = threading.Lock(), time.monotonic(), self._now()
        self._rules = read_rules(path, catalogue)
        self.problem: str | None = None

    def current(self) -> Rules:
        """Returns the rules that hold, and looks at most once a second whether the file is another one by now."""
        with self._lock:
            if time.monotonic() - self._looked >= LOOK_SECONDS:
                self._looked, mark = time.monotonic(), self._mark
                self._mark = self._now()
                if self._mark != mark:
                    self._read_again()
            return self._rules

    def _read_again(self) -> None:
        try:
            self._rules, self.problem = read_rules(self._path, self._catalogue), None
            LOG.warning("%s was read again: its rules hold from now on.", self._path)
        except UserError as error:
            self.problem = BROKEN
            LOG.error("The rules of before hold: %s", error)

    def _now(self) -> tuple[str, ...]:
        """Returns what tells a version of the file from the next."""
        try:
            return files.signature(self._path)
        except Exception:  # noqa: BLE001 - object stores raise what they like; reading it says what is wrong
            return ()
