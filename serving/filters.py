"""What an item has to have to be recommended: conditions on attributes, joined by all, any and not.

{"all": [{"attribute": "colour", "in": ["red", "blue"]}, {"not": {"attribute": "price", "at_least": 50}}]}
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

MAX_DEPTH, MAX_CONDITIONS, MAX_VALUES = 8, 64, 100
KINDS = ("All", "AnyOf", "Not", "Condition")  # names of the classes, which stand in where a mistake is

Text = Annotated[str, Field(max_length=1024)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Condition(_Part):
    """An attribute that is one of some values, or a number within bounds; an item without it does not match."""

    attribute: Text
    among: tuple[Text, ...] | None = Field(None, alias="in", min_length=1, max_length=MAX_VALUES)
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _something_to_match(self) -> Condition:
        bounds = self.at_least is not None or self.at_most is not None
        if (self.among is not None) == bounds:
            raise ValueError("a condition has either in, or at_least or at_most or both")
        return self


class All(_Part):
    """Every one of some filters."""

    all: tuple[Filter, ...] = Field(min_length=1, max_length=MAX_CONDITIONS)


class AnyOf(_Part):
    """One of some filters at least."""

    any: tuple[Filter, ...] = Field(min_length=1, max_length=MAX_CONDITIONS)


class Not(_Part):
    """The contrary of a filter."""

    not_: Filter = Field(alias="not")


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return next((kind for key, kind in zip(("all", "any", "not"), KINDS, strict=False) if key in value), KINDS[-1])
    return type(value).__name__ if type(value).__name__ in KINDS else KINDS[-1]


Filter = Annotated[
    Annotated[All, Tag("All")]
    | Annotated[AnyOf, Tag("AnyOf")]
    | Annotated[Not, Tag("Not")]
    | Annotated[Condition, Tag("Condition")],
    Discriminator(_kind),
]

for _part in (All, AnyOf, Not):
    _part.model_rebuild()


def _within_bounds(raw: Any) -> Any:
    """Passes what JSON holds of a filter on where its whole tree is within the bounds; recurses nowhere."""
    level, conditions = [raw], 0
    for _ in range(MAX_DEPTH):
        parts = [part for part in level if isinstance(part, dict)]
        conditions += len(parts)
        if conditions > MAX_CONDITIONS:
            raise ValueError(f"a filter has at most {MAX_CONDITIONS} parts")
        level = []
        for part in parts:
            for joined in (part.get("all"), part.get("any"), [part.get("not")]):
                level += joined if isinstance(joined, list) else []
        if not any(isinstance(part, dict) for part in level):
            return raw
    raise ValueError(f"the parts of a filter stand at most {MAX_DEPTH} deep")


Where = Annotated[Filter, BeforeValidator(_within_bounds)]  # a filter from outside
