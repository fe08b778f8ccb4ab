"""One JSON line for each request. No line holds an id of a user, a text, a query string or a message of an error.

Only what a run or a store says that cannot do something stands there as it is: such a sentence holds none of these.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import Any

LOG = logging.getLogger("tesserec.requests")


def line(level: int, **fields: Any) -> None:
    """Writes a line; fields that are None are left out."""
    if LOG.isEnabledFor(level):
        known = {name: value for name, value in fields.items() if value is not None}
        LOG.log(level, json.dumps({"time": round(time.time(), 3), **known}))


def where(error: BaseException) -> list[str]:
    """Returns the kind of an error and the lines of code that it came through, without its message."""
    frames = traceback.extract_tb(error.__traceback__)
    return [type(error).__name__, *(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-20:])]


def to_stderr() -> None:
    """Sends the lines of this process to its standard error, as they are."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOG.handlers, LOG.propagate = [handler], False
    LOG.setLevel(logging.INFO)
