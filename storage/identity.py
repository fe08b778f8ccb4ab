"""What results depend on: the settings of an operator, or of a model inside one, without those of its speed."""

from __future__ import annotations

import dataclasses
from typing import Any


def speed(default: Any) -> Any:
    """A dataclass field that changes how fast results come and not what they are."""
    return dataclasses.field(default=default, metadata={"identity": False})


def identity(configured: Any) -> dict[str, Any]:
    """What the results of an operator, or of a model inside one, depend on beside its rows, as plain JSON values.

    Its class, its version, and every field that is not declared with `speed`.
    """
    fields = [field for field in dataclasses.fields(configured) if field.metadata.get("identity", True)]
    values = {field.name: getattr(configured, field.name) for field in fields}
    return {
        "class": type(configured).__name__,
        "version": getattr(configured, "version", 1),
        **{name: identity(value) if dataclasses.is_dataclass(value) else value for name, value in values.items()},
    }
