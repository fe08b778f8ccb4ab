"""The log of a run on disk: partitions by the hash of the user, which are read and worked on one by one.

RUN/log/about.json           see `About`
RUN/log/read.json            which files it was read from, see `workflows.stages.ingest.earlier`
RUN/log/cuts-SPLIT.json      the times at which a split cuts the log
RUN/log/of-ITEMS/            these two of the events about the items with an embedding; cuts only if there are others
RUN/log/events/part-N        user and item (hashes of the ids), timestamp, label if there are any, context columns, each
                             name with `context_` before it; in the order of user, timestamp, item, label
RUN/log/users/part-N         user, user_id; in the order of user

A user's events are in partition `user % partitions`, all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from operators.log.events import Events
from operators.log.split import Parts, Split
from storage import files
from storage.errors import UserError
from storage.hashing import fingerprint, hash_ids, hash_order
from storage.mapped import map_table
from storage.run import RunDir

LIKED = 0.5  # the least label that counts as 1
KEYS = ("user", "timestamp", "item", "label")  # the columns of events that are no context, in the order of the rows
CONTEXT = "context_"  # begins the names of context columns, which a catalogue chooses
TIMESTAMP = pa.timestamp("us", "UTC")


@dataclass(frozen=True)
class About:
    """What is known of a whole log, or of those of its events that are about some items.

    Attributes:
        partitions: how many there are.
        labels: whether events have labels.
        context: names of the context columns.
        events, users: how many there are.
        positives: events that count as liked; all without labels.
        first, last: times of the first and last event, microseconds.
        unliked: time of the first event with label 0; 0 where there is none, or in older runs.
    """

    partitions: int
    labels: bool
    context: Sequence[str] = ()
    events: int = 0
    users: int = 0
    positives: int = 0
    first: int = 0
    last: int = 0
    unliked: int = 0

    @property
    def labelled(self) -> bool:
        """Whether there are labels of both kinds; labels that are all 1 say as little as none."""
        return self.labels and self.positives < self.events


@dataclass(frozen=True)
class Part:
    """One partition in numbers, in the order of user, time, item, label.

    Attributes:
        events: `user` is a position in `users`, `item` a row of the catalogue.
        users: hashes of the users with an event, int64 [U], ascending.
        context: float32 columns, a row for each event.
    """

    events: Events
    users: np.ndarray
    context: pa.Table


@dataclass(frozen=True)
class PartitionedLog:
    """The log of a run, whose partitions are read one by one; events of items without an embedding are left out.

    Attributes:
        run: whose log it is.
        about: what is known of the events that are not left out.
        items: hashes of the items with an embedding, int64 [N], ascending: an item's row is its position.
        folder: URI of what is known of these events; RUN/log where no event is left out.
    """

    run: RunDir
    about: About
    items: np.ndarray
    folder: str

    def part(self, number: int) -> Part:
        """Reads a partition.

        Raises:
            RuntimeError: it holds events of a user of another partition.
        """
        table = read_events(self.run, number)
        user = table["user"].to_numpy()
        if (user % self.about.partitions != number).any():
            raise RuntimeError(f"partition {number} of the log holds events of users of another one")
        at, known = rows_among(self.items, table["item"].to_numpy())
        users, codes = np.unique(user[known], return_inverse=True)
        time = table["timestamp"].cast(pa.int64()).to_numpy()[known]
        label = np.ones(len(time), np.float32)
        if self.about.labels:
            label = (table["label"].to_numpy()[known] >= LIKED).astype(np.float32)
        context = table.select([name for name in table.column_names if name.startswith(CONTEXT)])
        return Part(Events(codes, at[known], time, label), users, context.filter(pa.array(known)))

    def moments(self) -> Iterator[Events]:
        """Yields users and times of every partition, see `moments`."""
        return moments(self.run, self.about, None if self.folder == self.run.uri("log") else self.items)

    def users(self, number: int) -> pa.Table:
        """Reads user (int64) and user_id of a partition, in the order of user."""
        return files.read_table(part_uri(self.run, "users", number))

    def cuts(self, split: Split) -> tuple[int, ...]:
        """Returns the times at which a split cuts this log; see `kept_cuts`."""
        return kept_cuts(self.folder, split, self.moments, self.about.events)


def part_uri(run: RunDir, kind: str, number: int) -> str:
    """Returns the URI of the file of a partition; `kind` is `events` or `users`."""
    return files.part_uri(run.uri("log", kind), number)


def read_events(run: RunDir, number: int, columns: list[str] | None = None) -> pa.Table:
    """Reads the events of a partition as they are on disk."""
    return files.read_table(part_uri(run, "events", number), columns)


def moments(run: RunDir, about: About, items: np.ndarray | None = None) -> Iterator[Events]:
    """Yields users and times of every partition, items are all 0; of all events, or of those about these items."""
    for number in range(about.partitions):
        table = read_events(run, number, ["user", "timestamp", *([] if items is None else ["item"])])
        table = table if items is None else _about(table, items)
        user, time = np.unique(table["user"].to_numpy(), return_inverse=True)[1], table["timestamp"]
        ones = np.ones(len(user), np.float32)
        yield Events(user, np.zeros_like(user), time.cast(pa.int64()).to_numpy(), ones)


def kept_cuts(folder: str, split: Split, parts: Parts, events: int) -> tuple[int, ...]:
    """Returns the times at which a split cuts a log, which are kept in a folder; none for one by last events.

    Raises:
        UserError: the log cannot be split so.
    """
    uri = files.join(folder, f"cuts-{fingerprint(split.model_dump_json())}.json")
    if not files.exists(uri):
        files.write_json(uri, split.cuts(parts, events))
    return tuple(files.read_json(uri))


def read_user_ids(run: RunDir, hashes: np.ndarray) -> pa.Array:
    """Returns the ids of users by their hashes, int64 [Q]: string [Q]; reads the partitions that hold them."""
    about = read_about(run)
    distinct, code = np.unique(hashes, return_inverse=True)
    names = np.empty(len(distinct), object)
    owner = distinct % (about.partitions if about is not None else 1)
    for number in np.unique(owner):
        table = files.read_table(part_uri(run, "users", int(number)))
        at, _ = rows_among(table["user"].to_numpy(), distinct[owner == number])
        names[owner == number] = table["user_id"].take(pa.array(at)).to_pylist()
    return pa.array(names, pa.string()).take(pa.array(code))


def read_about(run: RunDir) -> About | None:
    """Returns what is known of the log of a run; None where there is none."""
    uri = run.uri("log", "about.json")
    return About(**files.read_json(uri)) if files.exists(uri) else None


def open_log(run: RunDir) -> PartitionedLog:
    """Returns the log of a run.

    Raises:
        UserError: there is none, it has no event of an item with an embedding, or the labels of all of these are 0.
    """
    whole = read_about(run)
    if whole is None:
        raise UserError("The catalogue has no interactions: leave out the stages that read them, from features on.")
    items, columns = item_hashes(run), KEYS if whole.labels else KEYS[:-1]
    folder = run.uri("log", f"of-{fingerprint(' '.join(files.signature(run.uri('embeddings'))))[:16]}")
    uri = files.join(folder, "about.json")
    if not files.exists(uri):
        fs, path = files.filesystem(folder)
        for old in {*fs.glob(f"{path.rpartition('/')[0]}/of-*")} - {path}:  # of other items
            fs.rm(old, recursive=True)
        tables = (read_events(run, number, list(columns)) for number in range(whole.partitions))
        files.write_json(uri, asdict(_added(whole, [counts(_about(table, items)) for table in tables])))
    about = About(**files.read_json(uri))
    if not about.events:
        raise UserError("Every event is about an item that interpret rejected: see what it says of them in rejects/.")
    check_liked(about.positives, "the events about usable items")
    return PartitionedLog(run, about, items, folder if about.events < whole.events else run.uri("log"))


def check_liked(positives: int, events: str = "the log") -> None:
    """Checks that some of the events was liked.

    Raises:
        UserError: every label is 0.
    """
    if not positives:
        raise UserError(f"Every label of {events} is 0: label the clicks or likes 1, or leave the column out.")


def check_trained(positives: int) -> None:
    """Checks that some event of the training part of the log was liked.

    Raises:
        UserError: none was.
    """
    if not positives:
        raise UserError("No event of the training part of the log is liked: give a longer log or another split.")


def item_hashes(run: RunDir) -> np.ndarray:
    """Returns the hashes of the ids of a run's items that have an embedding, int64 [N], ascending."""
    hashes: np.ndarray = _items(run, *files.signature(run.uri("embeddings")))["item"].to_numpy()
    return hashes


def item_ids(run: RunDir) -> pa.ChunkedArray:
    """Returns the ids of a run's items that have an embedding, N in the order of their hashes."""
    return _items(run, *files.signature(run.uri("embeddings")))["item_id"]


@functools.lru_cache(maxsize=1)
def _items(run: RunDir, *signature: str) -> pa.Table:
    schema = pa.schema([("item_id", pa.string()), ("item", pa.int64())])

    def batches() -> Iterator[pa.RecordBatch]:
        ids = files.read_table(run.uri("embeddings"), ["item_id"])["item_id"]
        ids = ids.take(hash_order(ids))
        yield from pa.table([ids, hash_ids(ids)], schema=schema).to_batches()

    return map_table(run, "item_hashes", signature, schema, batches)


def rows_among(sorted_hashes: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the position of each hash among sorted ones, int64 [E], and whether it is there at all, bool [E]."""
    at = np.searchsorted(sorted_hashes, hashes)
    at[at == len(sorted_hashes)] = 0
    return at, (sorted_hashes[at] == hashes) if len(sorted_hashes) else np.zeros(len(at), dtype=bool)


def _about(events: pa.Table, items: np.ndarray) -> pa.Table:
    """Returns the events about these items, hashes in ascending order."""
    return events.filter(pa.array(rows_among(items, events["item"].to_numpy())[1]))


def counts(events: pa.Table) -> dict[str, int]:
    """Counts the events of a partition."""
    times = pc.min_max(events["timestamp"].cast(pa.int64())).as_py()
    labels = "label" in events.column_names
    liked = pc.sum(pc.greater_equal(events["label"], LIKED)).as_py() if labels else events.num_rows
    others = events["timestamp"].filter(pc.less(events["label"], LIKED)) if labels else events["timestamp"][:0]
    users = pc.count_distinct(events["user"]).as_py()
    return {
        "events": events.num_rows,
        "users": users,
        "positives": liked or 0,
        "first": times["min"],
        "last": times["max"],
        "unliked": pc.min(others.cast(pa.int64())).as_py() or 0,
    }


def write_about(run: RunDir, parts: Sequence[dict[str, int]], columns: Sequence[str]) -> About:
    """Writes what is known of a whole log, from the counts of all its partitions and the columns of its events."""
    context = [name for name in columns if name.startswith(CONTEXT)]
    about = _added(About(len(parts), "label" in columns, context), parts)
    run.write_json(asdict(about), "log", "about.json")
    return about


def _added(about: About, parts: Sequence[dict[str, int]]) -> About:
    """Returns what is known of a log with the counts of its partitions."""
    events, users, positives = (sum(part[name] for part in parts) for name in ("events", "users", "positives"))
    there = [part for part in parts if part["events"]]
    first, last = min((part["first"] for part in there), default=0), max((part["last"] for part in there), default=0)
    unliked = min((part["unliked"] for part in parts if part["unliked"]), default=0)
    return replace(about, events=events, users=users, positives=positives, first=first, last=last, unliked=unliked)
