"""What there is in a catalogue to choose settings by: counts over its tables, a sample of media, both splits tried."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from models.evaluation.clicks import auc
from operators.log.encoding import Log, encode
from operators.log.events import SPLITS, first_interactions, known_before, known_to
from operators.log.split import Split, SplitLeaveLast, SplitTime, split_numbers
from storage import blocks, tables
from storage.errors import UserError
from storage.hashing import hash_ids, hash_order
from workflows.catalogs.survey import Survey, filled, labels_of, scan, survey
from workflows.init.media import Media, open_media, pictures_by_id
from workflows.stages.ingest import events as logs
from workflows.stages.ingest.items import canonical_items
from workflows.stages.ingest.stage import Config
from workflows.stages.ingest.texts import ids as ids_of
from workflows.stages.ingest.texts import like

SAMPLED_ITEMS, SAMPLED_EVENTS = 2_000, 500_000
ALIASES = {  # usual names of columns of the items table
    **dict.fromkeys(("name", "product_name", "headline"), "title"),
    **dict.fromkeys(("image", "images", "image_url", "image_urls", "picture", "photo", "video", "video_url"), "media"),
    **dict.fromkeys(("text", "summary", "body"), "description"),
}
TOLD_BY = 0.95  # AUC of a column that says as much as the label
LIKED = 0.7  # share of the way from the lowest to the highest rating from which on one counts as liked
LARGE_SHARE = 0.1  # of the log, for one user or item of many
MANY = 50
ROUNDED = r"^\s*\d([.,]\d+)?[eE]\+\d+\s*$"  # 1.2E+12, as spreadsheets show long numbers


class Parts(NamedTuple):
    """What a split of the log leaves to learn from."""

    split: Split
    examples: int  # rows that the ranker trains on; 0 where it cannot
    positives: int  # of training, in `sequences` histories
    sequences: int
    asked: int  # queries of the test part; 0 where next-item models cannot be fitted
    repeats: bool  # whether most of the queries are about items that the user has met


@dataclass(frozen=True)
class Behaviour:
    """What a log holds.

    Attributes:
        users, items: with an event.
        per_user: the median of the events of a user, and the number that nine in ten users stay below.
        first, last: time of the first and last event; None where times only order the events of one user.
        dropped: share of the events that ingest will drop.
        labelled: whether there are labels of both kinds.
        liked: share of positives.
        parts: what the splits leave, the preferred one first; empty where there is nothing to learn from.
        reason: why it is empty.
    """

    users: int
    items: int
    per_user: tuple[int, int]
    first: datetime | None
    last: datetime | None
    dropped: float = 0.0
    labelled: bool = False
    liked: float = 1.0
    parts: tuple[Parts, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Findings:
    """What there is in a catalogue.

    Attributes:
        counts: of its tables.
        ingest: settings of ingest that the tables ask for.
        media: None where no item has one.
        characters: of title and description together, the median of items that have some.
        behaviour: None without a log.
        context: columns of the log that become context features.
        odd: sentences about what a user may not expect.
    """

    counts: Survey
    ingest: dict[str, Any] = field(default_factory=dict)
    media: Media | None = None
    characters: int = 0
    behaviour: Behaviour | None = None
    context: tuple[str, ...] = ()
    odd: tuple[str, ...] = ()


def find(catalog: str) -> Findings:
    """Looks at the tables of a catalogue, through counts and samples.

    Raises:
        UserError: the catalogue cannot be worked on.
    """
    tables.check(catalog)
    items_uri, log_uri = (tables.find(catalog, name) for name in ("items", "interactions"))
    assert items_uri is not None  # noqa: S101 - checked
    counts, sample = survey(catalog), _sample(items_uri, SAMPLED_ITEMS)
    settings: dict[str, Any] = {}
    if not counts.filled["media"] and (pattern := pictures_by_id(catalog, sample)):
        settings["media"] = pattern
    if log_uri is not None and (rating := _ratings(counts, log_uri)):
        settings |= rating
    config = Config(**settings)
    if settings:  # they change what counts as a label or a medium
        counts = survey(catalog, label=config.label, media=config.media)
    if not counts.usable:
        hints = [f"rename {name!r} to {known}" for name, known in _renamed(counts).items()]
        lack, remedy = "an item_id and a title, a description or a medium", " and ".join(hints) or "give the items one"
        raise UserError(f"{items_uri} has no item with {lack}: {remedy}.")
    items = canonical_items(config.with_media(sample), items_uri)
    texts = pl.sum_horizontal(pl.col("title", "description").str.strip_chars().str.len_chars().fill_null(0))
    characters = items.select(texts.alias("n")).filter(pl.col("n") > 0)["n"].median()
    found = Findings(
        counts,
        settings,
        open_media(catalog, items) if counts.filled["media"] else None,
        int(characters) if isinstance(characters, float) else 0,
    )
    odd = [*_unreadable(items_uri), *(_unreadable(log_uri) if log_uri else ()), *_odd_items(found)]
    odd += [*_rounded(items_uri, "item_id"), *(_rounded(log_uri, "user_id", "item_id") if log_uri else ())]
    if log_uri is not None:
        behaviour, more = _behaviour(catalog, items_uri, log_uri, config, counts)
        context = tuple(logs.context_columns(scan(log_uri).collect_schema()))
        return replace(found, behaviour=behaviour, context=context, odd=(*odd, *more))
    return replace(found, odd=tuple(odd))


def _unreadable(uri: str) -> Iterator[str]:
    """Says what had to be guessed of a table that is text, and which lines are no rows."""
    if blocks.is_parquet(uri):
        return
    scanned = blocks.scan(uri)
    yield from scanned.notes
    if scanned.bad:
        yield f"{len(scanned.bad)} lines of {uri} cannot be read ({scanned.bad[0]})"


def _rounded(uri: str, *columns: str) -> Iterator[str]:
    """Says which ids have lost digits."""
    for name in columns:
        if scan(uri).collect_schema()[name] == pl.String:
            ids = pl.col(name).filter(pl.col(name).str.contains(ROUNDED))
            if (found := scan(uri).select(ids.first()).collect(engine="streaming").item()) is not None:
                yield f"{uri} has ids such as {found!r} that lost digits in a spreadsheet: export {name} as text"


def _sample(uri: str, rows: int) -> pl.DataFrame:
    """Returns rows of a table that are evenly spread."""
    table = scan(uri)
    step = max(1, math.ceil(table.select(pl.len()).collect(engine="streaming").item() / rows))
    return table.with_row_index("").filter(pl.col("") % step == 0).drop("").collect(engine="streaming")


def _ratings(counts: Survey, log_uri: str) -> dict[str, Any]:
    """Returns the settings that make labels of ratings; none where labels are 0 and 1, or absent."""
    for column in (name for known in ("label", *logs.RATINGS) for name in counts.columns if name.lower() == known):
        value = labels_of(scan(log_uri).collect_schema(), column)
        low, high = scan(log_uri).select(low=value.min(), high=value.max()).collect(engine="streaming").row(0)
        if column == "label" or low is not None:
            break
    else:
        return {}
    named = {} if column == "label" else {"label": column}
    if low is not None and low >= 0 and high <= 1 and column.lower() == "label":
        return named
    if low is None or not math.isfinite(high - low) or (low >= 0 and high <= 1) or (low == high and column != "label"):
        return {}
    least = low + LIKED * (high - low)
    return {**named, "positive_from": float(math.ceil(least) if math.ceil(least) <= high else round(least, 6))}


def _renamed(counts: Survey) -> dict[str, str]:
    """Returns what columns of the items table that are not read may be meant for: one for each that nothing fills."""
    found: dict[str, str] = {}
    for name in counts.unread:
        plain = name.lower()
        known = plain if plain in tables.KNOWN["items"][1:] else ALIASES.get(plain)
        if known and not counts.filled[known] and known not in found.values():
            found[name] = known
    return found


def _odd_items(found: Findings) -> Iterator[str]:
    counts, media = found.counts, found.media
    if counts.unnamed:
        yield f"{counts.unnamed:,} items have no id or that of another item: they will be rejected"
    if counts.bare:
        yield f"{counts.bare:,} items have no title, no description and no medium: they will be rejected"
    if media is not None and media.opened < media.tried:
        broken = media.tried - media.opened
        yield f"{broken} of {media.tried} media that were tried do not open ({media.problem})"
    meant = _renamed(counts)
    for name, known in meant.items():
        yield f"the items' column {name} is not read: if it holds what {known} is for, it has to be called so"
    if unread := [name for name in counts.unread if name not in meant]:
        names = ", ".join(unread[:6]) + (", …" if len(unread) > 6 else "")
        yield f"no stage reads the items' columns {names}: put what should be learned from into attributes"


def _behaviour(
    catalog: str, items_uri: str, log_uri: str, config: Config, counts: Survey
) -> tuple[Behaviour, list[str]]:
    """Counts over the whole log, and what ingest and both splits make of a sample of its users."""
    assert counts.events is not None  # noqa: S101 - there is a log
    table = scan(log_uri)
    by_user, by_item = (table.group_by(name).len().collect(engine="streaming") for name in ("user_id", "item_id"))
    by_user = by_user.with_columns(logs.user_ids(by_user["user_id"])).group_by("user_id").sum()
    per_user = by_user["len"].sort()
    share = max(1, math.ceil(counts.events / SAMPLED_EVENTS))
    if share > 1:
        table = table.filter(pl.col("user_id").hash(0) % share == 0)
    raw = config.with_labels(table.collect(engine="streaming"))
    bare = pl.lit(value=False) if config.media else filled(scan(items_uri).collect_schema())["bare"]
    items = scan(items_uri).select("item_id", bare=bare).collect(engine="streaming")
    items = items.with_columns(ids_of(items["item_id"])).drop_nulls("item_id").unique("item_id")
    ids, usable = items["item_id"], items.filter(~pl.col("bare"))["item_id"]
    order = tables.timestamps(catalog) == "order"
    canonical = logs.canonical_events(raw, log_uri, order=order)
    hashes = np.sort(hash_ids(ids.to_list()))
    events, dropped = logs.clean_events(canonical, hashes, raw, bad=[])
    logs.check_dropped(log_uri, events.height, dropped, 1.0, ids.head(logs.EXAMPLES).to_list())
    times = events.select(first=pl.col("timestamp").min(), last=pl.col("timestamp").max()).row(0)
    found = Behaviour(
        by_user.height,
        by_item.height,
        (int(per_user[len(per_user) // 2]), int(per_user[9 * len(per_user) // 10])),
        first=None if order else times[0],
        last=None if order else times[1],
        dropped=1 - events.height / raw.height,
    )
    odd = list(_odd_events(raw, ids, dropped, by_user, by_item))
    if times[0] == times[1]:
        return replace(found, reason="all events have the same time and nothing tells their order"), odd
    try:
        column = pa.chunked_array([usable.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.string())])
        log = encode(logs.to_arrow(events), column.take(hash_order(column.to_pylist())))
    except UserError as error:
        return replace(found, reason=str(error).split(":")[0]), odd
    parts, reason = [], ""
    for split in (SplitLeaveLast(kind="leave_last"),) if order else (SplitTime(), SplitLeaveLast(kind="leave_last")):
        try:
            part = _parts(log, split, share, order=order)
        except UserError as error:
            reason = reason or str(error).split(":")[0]
            continue
        if part.examples or part.asked:
            parts.append(part)
    parts.sort(key=lambda part: (part.examples > 0) + (part.asked > 0), reverse=True)
    liked = float(log.events.label.mean())
    if liked == 1 and "label" in raw.columns:
        odd.append("every label is 1, which says as little as none: negatives are sampled")
    reason = "" if parts else reason or "no split of the log leaves something to learn from and something to ask"
    return replace(found, labelled=log.labelled, liked=liked, parts=tuple(parts), reason=reason), odd


def _parts(log: Log, split: Split, share: int, *, order: bool) -> Parts:
    """Tries a split; all numbers but the queries' are of the whole log, of which a `share`-th was read.

    Raises:
        UserError: the log cannot be split so.
    """
    from operators.log.sequences import queries, training_sequences  # imports torch, which a catalogue alone needs not

    def queried(name: str, *, repeats: bool) -> int:
        return len(queries(events, numbers, name, history=1, repeats=repeats).target)

    events = log.events
    numbers = split_numbers(split, events)
    eligible = np.ones(len(events), dtype=bool) if log.labelled else first_interactions(events)
    rows = [
        int((known_before(known, known.item, asked.item, asked.time).events > 0).sum())
        if not log.labelled
        else len(asked)
        for number in range(len(SPLITS))
        for asked, known in [(events.take((numbers == number) & eligible), events.take(known_to(numbers, number)))]
    ]
    sequences = training_sequences(events, numbers)
    lengths = sequences.offsets.diff()
    asked = {repeats: [queried(name, repeats=repeats) for name in SPLITS[1:]] for repeats in (False, True)}
    repeats = 2 * asked[False][1] < asked[True][1]
    learns = bool((lengths > 1).any()) and min(asked[repeats]) > 0
    return Parts(
        split,
        0 if order or min(rows) == 0 else share * rows[0] * (1 if log.labelled else 5),
        share * len(sequences.values),
        share * len(lengths),
        share * asked[repeats][1] if learns else 0,
        repeats,
    )


def _odd_events(
    raw: pl.DataFrame, ids: pl.Series, dropped: dict[str, logs.Loss], by_user: pl.DataFrame, by_item: pl.DataFrame
) -> Iterator[str]:
    for name, groups in (("user_id", by_user), ("item_id", by_item)):
        top = groups.sort("len").row(-1)
        share = top[1] / int(groups["len"].sum())
        if groups.height >= MANY and share > LARGE_SHARE:
            yield f"the {name} {top[0]!r} has {share:.0%} of all events"
    for name in logs.context_columns(raw.schema):
        if "label" in raw.columns and _tells_the_label(raw, name):
            yield f"the log's {name} tells nearly alone what was liked: remove it if it is known only after the event"
        if raw.height >= MANY and (raw[name].cast(pl.Float64) % 1 == 0).all() and raw[name].is_unique().all():
            yield f"the log's {name} differs in every event, as ids do: remove it if it measures nothing"
    if lost := logs.told(dropped):
        yield f"of {raw.height:,} events will be dropped {lost}"
    if dropped["unknown_item"].events:
        named = ids_of(raw["item_id"], whole=False)
        strange = named.filter(like(named, np.sort(hash_ids(ids.to_list()))).is_null()).drop_nulls().unique()
        spreadsheet = _bare_number(strange).is_in(_bare_number(ids).implode()).any()
        reason = "; they differ in zeros or .0 alone, which a spreadsheet may have lost or added" if spreadsheet else ""
        yield f"the items table has ids such as {', '.join(map(repr, ids.sort().head(logs.EXAMPLES)))}{reason}"


def _tells_the_label(raw: pl.DataFrame, name: str) -> bool:
    values = raw.select(logs.number(raw["label"]), logs.number(raw[name])).drop_nulls()
    found = auc(values["label"].to_numpy() >= 1, values[name].to_numpy())  # NaN where all labels are alike
    return max(found, 1 - found) > TOLD_BY and values.height >= MANY


def _bare_number(ids: pl.Series) -> pl.Series:
    return ids.str.replace(r"\.0$", "").str.strip_chars_start("0")
