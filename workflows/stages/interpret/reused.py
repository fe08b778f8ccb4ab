"""Items that the run before has interpreted and that have not changed since: they are taken over as they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from operators.columns import positions
from operators.gate import OPEN
from operators.log.partitions import rows_among
from storage import files
from storage.hashing import hash_ids, hash_strings
from storage.mapped import BATCH_ROWS
from storage.media.sources import placed
from storage.run import RunDir
from workflows.engine.definition import definition_of

SEED = 2  # of the hash of what an item says


class Reused:
    """The items of an earlier run that may be taken over, by hashes of their ids and of their rows of the catalogue.

    They are those that came through without an issue: others are tried again. An item is the same if its row of the
    catalogue says the same and names media in the same places: what lies there is not looked at.
    """

    def __init__(self, run: RunDir) -> None:
        """Reads the earlier run, batch by batch; 17 bytes are held for each of its items."""
        self._run, catalog = run, definition_of(run).catalog
        rejects = files.dataset(run.uri("rejects", "interpret")).to_table(columns=["item_id"])["item_id"]
        uri, seen = run.uri("catalog", "items"), list[np.ndarray]()
        for items in _tables(uri, files.dataset(uri).schema.names):
            fine = items.filter(pa.array(positions(items["item_id"], rejects) < 0))
            seen.append(np.stack([hash_ids(fine["item_id"]), _contents(fine, catalog).view(np.int64)]))
        ids, contents = np.concatenate([np.empty((2, 0), np.int64), *seen], axis=1)
        order = np.argsort(ids)
        self._ids, self._contents = ids[order], contents[order]
        self._captioned = np.zeros(len(ids), bool)
        for items in _tables(run.uri("items"), ["item_id", "caption"]):
            at, known = rows_among(self._ids, hash_ids(items["item_id"]))
            self._captioned[at[known]] = items["caption"].is_valid().to_numpy()[known]

    def among(self, items: pa.Table, catalog: str, gate: pa.Array) -> np.ndarray:
        """Masks the items [N] of a catalogue that are taken over: not those that get a caption now and had none."""
        same, captioned = self._same(items, catalog)
        return same & (captioned | ~pc.equal(gate, OPEN).to_numpy(zero_copy_only=False))

    def captioned(self, items: pa.Table, catalog: str) -> list[str]:
        """Returns the ids of those items of a catalogue whose captions are taken over, whatever the gate."""
        return list(items["item_id"].filter(pa.array(np.logical_and(*self._same(items, catalog)))).to_pylist())

    def _same(self, items: pa.Table, catalog: str) -> tuple[np.ndarray, np.ndarray]:
        """Masks items [N] of a catalogue that have not changed, and those that had a caption."""
        at, known = rows_among(self._ids, hash_ids(items["item_id"]))
        if not len(self._ids):
            return known, known
        return known & (self._contents[at] == _contents(items, catalog).view(np.int64)), self._captioned[at]

    def batches(self, chosen: np.ndarray, names: list[str]) -> Iterator[pa.RecordBatch]:
        """Yields the rows of `items` of the earlier run whose ids have one of these hashes, int64 [M], ascending."""
        for items in _tables(self._run.uri("items"), names):
            yield from items.filter(pa.array(rows_among(chosen, hash_ids(items["item_id"]))[1])).to_batches()


def _tables(uri: str, names: list[str]) -> Iterator[pa.Table]:
    return (pa.Table.from_batches([batch]) for batch in files.batches(uri, names, BATCH_ROWS))


def _contents(items: pa.Table, catalog: str) -> np.ndarray:
    """Hashes what rows of a catalogue say, uint64 [N], whatever the order of their columns."""
    columns = {
        "media": lambda media: None if media is None else [[placed(one["uri"], catalog), one["kind"]] for one in media],
        "attributes": lambda pairs: None if pairs is None else sorted(pairs),
    }
    as_it_is: Callable[[object], object] = lambda value: value  # noqa: E731
    names = sorted(set(items.column_names) - {"item_id", "gate"})
    said = [map(columns.get(name, as_it_is), items[name].to_pylist()) for name in names]
    rows = zip(*said, strict=True) if said else ((),) * items.num_rows
    return hash_strings((json.dumps([names, *row]) for row in rows), seed=SEED)
