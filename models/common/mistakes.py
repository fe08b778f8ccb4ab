"""What is wrong with a file of settings, in one sentence that says what to write."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError

UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # keys of a model, of a dataclass


def explain(error: ValidationError, model: type[BaseModel], renamed: Mapping[str, str]) -> str:
    """Returns the first mistake as one sentence; for an unknown key it suggests the nearest valid one.

    An unknown key comes before one that is missing: it may be the same, misspelled.

    Args:
        error: what was wrong.
        model: of the whole file.
        renamed: keys and `key: value` of earlier versions, and what to write in their place; empty for what is gone.
    """
    problem = _first(error)
    parts = _walk(model, problem["loc"])[0]
    path = ".".join(parts)
    for old in (path, f"{path}: {problem['input']}"):
        if old in renamed:
            remedy = f"write {renamed[old]} in its place" if renamed[old] else "leave it out"
            return f"{old} is of an earlier version; {remedy}."
    if problem["type"] in UNKNOWN:
        if parts[-1] in model.model_fields:
            return f"unknown key {path}; write {parts[-1]} at the top of the definition."
        return f"unknown key {path}; {_nearest(parts[-1], _walk(model, problem['loc'][:-1])[1])}"
    if problem["type"] == "missing":
        return f"the key {path} is missing."
    if problem["type"].startswith("union_tag"):
        key = path + "." + problem["ctx"]["discriminator"].strip("'()")
        if problem["type"] == "union_tag_not_found":
            return f"the key {key} is missing."
        choices = [tag.strip("' ") for tag in problem["ctx"]["expected_tags"].split(",")]
        return f"{key} is {problem['ctx']['tag']!r}: choose one of {', '.join(choices)}."
    if problem["type"] in ("variable", "credentials"):  # the value may be a secret
        return f"{path} {problem['msg']}."
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"{path} is {problem['input']!r}: {message}."


def mistaken_key(error: ValidationError, model: type[BaseModel]) -> str:
    """Returns the dotted path of the key that `explain` speaks of."""
    return ".".join(_walk(model, _first(error)["loc"])[0])


def _first(error: ValidationError) -> Any:
    problems = error.errors()
    return next((problem for problem in problems if problem["type"] in UNKNOWN), problems[0])


def _nearest(key: str, valid: list[str]) -> str:
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"valid keys are {', '.join(valid)}."


def _walk(model: type, loc: tuple[Any, ...]) -> tuple[list[str], list[str]]:
    """Returns the keys of a problem's location, without the tags of unions, and the keys that are valid there."""
    current = [model]
    parts = []
    for part in loc:
        fields = {name: annotations for option in current for name, annotations in _fields(option).items()}
        tagged = [option for option in current if part in _tags(option)]
        if part in fields or not tagged:
            parts.append(str(part))
            current = current if isinstance(part, int) else _models_in(*fields.get(part, ()))  # an entry of a list
        else:
            current = tagged
    return parts, list(dict.fromkeys(name for option in current for name in _fields(option)))


def _fields(model: Any) -> dict[str, tuple[Any, ...]]:
    """Returns the annotations of the fields of a model or a dataclass."""
    if dataclasses.is_dataclass(model):
        hints = get_type_hints(model, include_extras=True)
        return {field.name: (hints[field.name],) for field in dataclasses.fields(model)}
    return {field.alias or name: (field.annotation, *field.metadata) for name, field in model.model_fields.items()}


def _models_in(*annotations: Any) -> list[type]:
    models: list[type] = []
    for annotation in annotations:
        if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)):
            models.append(annotation)
        models += _models_in(*getattr(annotation, "__args__", ()))
    return models


def _tags(model: type) -> tuple[Any, ...]:
    """Returns what tells a model from the others of its union: the values of its discriminator key, else its name."""
    for name in ("backend", "kind", "name"):
        annotation, *_ = _fields(model).get(name, (None,))
        if get_origin(annotation) is Literal:
            return get_args(annotation)
    return (model.__name__,)
