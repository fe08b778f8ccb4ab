"""The log of the run before: what has been read of it once is not read again.

A run keeps which files its log was read from, by their content. Where all of them are still there, as in a folder to
which new files come, the partitions of that run go on, and only new files are read. `tesserec export` says which of the
files that it writes hold a partition of a run as it is, and in what state they are; the other ones are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from operators.log.partitions import CONTEXT, read_about
from storage import files, tables
from storage.blocks import Source
from storage.hashing import fingerprint
from storage.run import RunDir
from workflows.engine.previous import fingerprint_of
from workflows.stages.ingest.events import Form
from workflows.stages.ingest.settings import Config

VERSION = 1  # of how files become partitions
READ = ("log", "read.json")


class Carried(NamedTuple):
    """What of the log comes from the run before.

    Attributes:
        run: its URI.
        partitions: the numbers of its partitions that go on; what the others hold is read again.
        left: the parts of the table that are to be read.
    """

    run: str
    partitions: tuple[int, ...]
    left: list[Source]


def write_read(run: RunDir, config: Config, form: Form, states: Mapping[str, str]) -> None:
    """Writes which files the log of a run comes from, and how they were read.

    `states` are those of before the reading: a file that comes or changes meanwhile is new to the next update.
    """
    run.write_json({"how": _how(config, form), "files": sorted(states.values())}, *READ)


def carried(config: Config, catalog: str, form: Form, log: list[Source], states: Mapping[str, str]) -> Carried | None:
    """Returns what of a log comes from the run before; None where all of it has to be read.

    Args:
        config: names that run.
        catalog: URI of the catalogue.
        form: how its log is read.
        log: the parts of the table.
        states: of their files.
    """
    if config.previous is None:
        return None
    earlier = RunDir(config.previous)
    about = read_about(earlier)
    columns = {f"{CONTEXT}{name}" for name in form.context}
    if about is None or about.labels != form.label or set(about.context) != columns:
        return None
    before = earlier.read_json(*READ) if files.exists(earlier.uri(*READ)) else {}
    if before.get("how") == _how(config, form) and set(before["files"]) <= set(states.values()):
        left = [source for source in log if states[source.uri] not in before["files"]]
        return Carried(config.previous, tuple(range(about.partitions)), left)
    whole = _exported(catalog, fingerprint_of(config.previous, "ingest"), states)
    if not whole:
        return None
    left = [source for source in log if _name(source.uri) not in whole]
    return Carried(config.previous, tuple(sorted(whole.values())), left)


def _exported(catalog: str, ingested: str, states: Mapping[str, str]) -> dict[str, int]:
    """Returns the files of an export that hold a partition of a run as it is, with their numbers; none if one changed.

    Args:
        catalog: URI of the export.
        ingested: fingerprint of the run's `ingest`.
        states: of the log's files, by their URIs.
    """
    said, now = tables.exported(catalog), {_name(uri): state for uri, state in states.items()}
    parts = said.get("parts", {}) if ingested and said.get("ingest") == ingested else {}
    same = all(now.get(name) == state for name, (_, state) in parts.items())
    return {name: number for name, (number, _) in parts.items()} if same else {}


def _name(uri: str) -> str:
    return uri.rsplit("/", 1)[-1]


def _how(config: Config, form: Form) -> str:
    known = {**form._asdict(), "known": sorted(form.known)}
    return fingerprint(json.dumps([VERSION, config.label, config.positive_from, known], sort_keys=True))


def states_of(log: Sequence[Source]) -> dict[str, str]:
    """Returns what tells the contents of files apart, by their URIs."""
    return {uri: tables.state(uri) for uri in dict.fromkeys(source.uri for source in log)}
