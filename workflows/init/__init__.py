"""`tesserec init`: looks at a catalogue and writes a definition that fits it, every choice with its reason."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from storage import files, tables
from storage.errors import UserError
from workflows.distributed import cluster
from workflows.engine.definition import resolve
from workflows.engine.text import percent
from workflows.init import costs
from workflows.init.choices import Choice, Plan, at_pace, choose
from workflows.init.findings import Findings, find
from workflows.stages.ingest.events import IDS, RATINGS

WIDTH = 118
NOUNS = {"title": "a title", "description": "a description", "media": "media", "attributes": "attributes"}


def init(catalog: str, output: str) -> list[str]:
    """Writes a definition for a catalogue and returns what was found, in about ten lines.

    Raises:
        UserError: the catalogue cannot be worked on, or the file is there already or has a name that cannot be used.
    """
    if files.exists(output):
        raise UserError(f"{output} is there already: name another file with -o, or remove it.")
    name = Path(output).stem
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(
            f"{output} gives the workflow its name: use letters, digits, dots, dashes and underscores alone."
        )
    found = find(catalog)
    node = cluster.nodes("local")[0]
    plan = at_pace(choose(found, node), costs.pace())
    text = definition(name, catalog, plan)
    resolve(yaml.safe_load(text), source=output)
    files.write_bytes(output, text.encode())
    ran = ", ".join(choice.name for choice in plan.stages)
    return [*lines(catalog, found), f"{output}: {ran}; {minutes(plan)}", f"Next: tesserec check {output}"]


def minutes(plan: Plan) -> str:
    """Says how long a run will take.

    >>> minutes(Plan((Choice("ingest", seconds=150.0),)))
    'about 3 min on this machine when it is quiet'
    """
    seconds = costs.RAY_START + sum(choice.cost for choice in plan.stages)
    return f"about {_long(seconds)} on this machine when it is quiet"


def definition(name: str, catalog: str, plan: Plan) -> str:
    """Returns a definition as YAML, with the reason of every choice beside it."""
    out = [
        f"# Written by `tesserec init`: {minutes(plan)}. Change what you like; a line without settings takes defaults."
    ]
    out += [f"name: {_flow(name)}", "seed: 0", f"catalog: {_flow(catalog)}"]
    if plan.split is not None:
        out += _line(plan.split, "")
    out.append("stages:")
    for choice in plan.stages:
        out += _line(choice, "  ")
    out += [
        line
        for stage, reason in plan.left_out.items()
        for line in _comment(f"{stage}: left out, {reason[:1].lower()}{reason[1:]}", "  ")
    ]
    return "\n".join(out) + "\n"


def _line(choice: Choice, indent: str) -> Iterator[str]:
    cost = f"about {_long(choice.cost)}" if choice.cost >= 20 else ""
    comment = "; ".join(part for part in (choice.reason, cost) if part)
    if comment:
        yield from _comment(comment, indent)
    if not choice.parts:
        yield f"{indent}{choice.name}:" + (f" {_flow(choice.settings)}" if choice.settings != {} else "")
        return
    yield f"{indent}{choice.name}:"
    for key, value in (choice.settings or {}).items():
        yield f"{indent}  {key}: {_flow(value)}"
    for part in choice.parts:
        yield from _line(part, f"{indent}  ")


def _long(seconds: float) -> str:
    """Says how long something takes, in one unit: an estimate has no second one.

    >>> _long(40), _long(200), _long(9_000)
    ('40 s', '3 min', '2.5 h')
    """
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _comment(text: str, indent: str) -> list[str]:
    mark = f"{indent}# "
    return textwrap.wrap(text, WIDTH, initial_indent=mark, subsequent_indent=mark)


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).removesuffix("...\n").strip()


def lines(catalog: str, found: Findings) -> Iterator[str]:
    """Yields what was found, a line for each subject."""
    counts, media, behaviour = found.counts, found.media, found.behaviour
    shares = ", ".join(f"{_share(counts.filled[name], counts.items)} with {noun}" for name, noun in NOUNS.items())
    yield f"{catalog}: {counts.items:,} items ({shares})"
    if media is not None:
        kinds = " and ".join(f"{number:,} {kind}s" for kind, number in sorted(media.kinds.items()))
        tried = f"; {media.opened} of {media.tried} that were tried open" if media.tried else ""
        yield f"  media: {kinds} in a sample{tried}{'; some behind http' if media.http else ''}"
    if found.characters:
        yield f"  texts: half of the items that have some have {found.characters} characters or more"
    if counts.events is None:
        yield "  log: none"
    elif behaviour is not None:
        yield f"  log: {counts.events:,} events, {behaviour.users:,} users, {behaviour.items:,} items with an event"
        median, most = behaviour.per_user
        yield f"  per user: half have {median} events or more, one in ten {most} or more"
        yield (
            "  time: only the order of each user's events"
            if behaviour.first is None or behaviour.last is None
            else f"  time: {behaviour.first:%Y-%m-%d %H:%M} to {behaviour.last:%Y-%m-%d %H:%M} UTC"
        )
        if counts.labels is None and "label" not in found.ingest:
            yield "  labels: none, every event counts as liked"
        elif "positive_from" in found.ingest:
            column = found.ingest.get("label", "label")
            least = found.ingest["positive_from"]
            yield f"  labels: ratings in {column}, liked from {least:g}, which are {behaviour.liked:.0%}"
        else:
            yield f"  labels: 0 and 1, liked are {behaviour.liked:.0%}" if behaviour.labelled else "  labels: one alone"
        known = {*tables.KNOWN["interactions"], found.ingest.get("label")}
        if further := [name for name in counts.columns if name not in known]:
            rest = [name for name in further if name not in found.context]
            ids = [name for name in rest if re.search(IDS, name)]
            ratings = [name for name in rest if name.lower() in (*RATINGS, "label")]
            fates = {
                "become context features": [name for name in further if name in found.context],
                "look like ids, not read": ids,
                "known after the event alone, not read": ratings,
                "no numbers, not read": [name for name in rest if name not in (*ids, *ratings)],
            }
            parts = (f"{', '.join(names[:8])} ({fate})" for fate, names in fates.items() if names)
            yield f"  further columns of the log: {'; '.join(parts)}"
    for sentence in found.odd:
        yield f"  look at: {sentence}"


def _share(part: int, whole: int) -> str:
    """Says a share; all and none as such.

    >>> _share(1, 3), _share(3, 3), _share(0, 3)
    ('33.3%', 'all', 'none')
    """
    if part == whole:
        return "all"
    return percent(part / whole) if part else "none"
