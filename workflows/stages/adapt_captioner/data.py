"""What a captioner is adapted from: pictures, and the words of their items' texts that the pictures tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from models.qformer.sentences import sentences, text_of
from models.qformer.training import Pictures
from models.qformer.vision import WIDTH, pooled
from models.qformer.words import seen_words
from operators.base import KEPT
from storage import files
from storage.errors import UserError
from storage.hashing import hash_strings
from storage.mapped import map_table
from storage.run import RunDir
from workflows.distributed import streams
from workflows.stages.adapt_captioner.settings import Config

COLUMNS = ("item_id", "title", "description", "media", "attributes")
LESSON = pa.schema(
    [
        ("item_id", pa.string()),
        ("row", pa.int64()),
        ("text", pa.string()),
        ("sentences", pa.list_(pa.string())),
        ("held_out", pa.bool_()),
    ]
)
BATCH_ROWS = 1_024


class Lessons(NamedTuple):
    """What there is to learn.

    Attributes:
        table: one row for each picture, in the order of their ids' hashes: `LESSON`. `row` is the picture's among the
            features; an item of which no word is seen has no sentences.
        words: words that pictures tell, and how well.
    """

    table: pa.Table
    words: dict[str, float]

    @property
    def told(self) -> pa.Table:
        """The rows that have sentences."""
        return self.table.filter(pc.greater(pc.list_value_length(self.table["sentences"]), 0))


def choose(run: RunDir, limit: int, target: str) -> int:
    """Writes the items that have a medium and a text, those with the lowest hashes up to a limit; returns their number.

    Raises:
        UserError: no item has both.
    """
    source, hashes = run.uri("catalog", "items"), [np.empty(0, np.uint64)]
    batches = files.batches(source, list(COLUMNS), BATCH_ROWS)
    hashes.extend(hash_strings(batch["item_id"].filter(_usable(batch))) for batch in batches)
    found = np.sort(np.concatenate(hashes))
    if not len(found):
        raise UserError("No item has both a medium and a title or attributes: there is nothing to learn captions from.")
    last = found[min(limit, len(found)) - 1]

    def chosen() -> Iterator[pa.Table]:
        yield pa.table(
            {name: [] for name in COLUMNS}, files.dataset(source).schema.empty_table().select(COLUMNS).schema
        )
        for batch in files.batches(source, list(COLUMNS), BATCH_ROWS):
            rows = batch.filter(_usable(batch))
            yield pa.Table.from_batches([rows.filter(pa.array(hash_strings(rows["item_id"]) <= last))])

    return files.write_parts(target, chosen())


def _usable(batch: pa.RecordBatch) -> pa.Array:
    texts = zip(batch["title"].to_pylist(), batch["attributes"].to_pylist(), strict=True)
    told = pa.array([bool(text_of(title, attributes or ())) for title, attributes in texts], pa.bool_())
    return pc.and_(told, pc.fill_null(pc.greater(pc.list_value_length(batch["media"]), 0), False))


def map_features(run: RunDir, sink: str, views: int) -> pa.Table:
    """Returns item_id and features, fixed_size_list<halffloat>[views x WIDTH], of all pictures that decoded, mapped."""
    schema = pa.schema([("item_id", pa.string()), ("features", pa.list_(pa.float16(), views * WIDTH))])

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in streams.outcome_batches(sink, KEPT, ["item_id", "look"]):
            rows = batch.filter(batch["look"].is_valid())
            values = np.frombuffer(b"".join(rows["look"].to_pylist()), np.float16)
            features = pa.FixedSizeListArray.from_arrays(pa.array(values), views * WIDTH)
            yield pa.RecordBatch.from_arrays([rows["item_id"], features], schema=schema)

    return map_table(run, "looks", [sink, str(views)], schema, batches)


def features_of(mapped: pa.Table) -> np.ndarray:
    """Returns the features of a mapped table, float16 [pictures x views, WIDTH], without a copy."""
    values: np.ndarray = mapped["features"].chunk(0).flatten().to_numpy()
    return values.reshape(-1, WIDTH)


def lessons(source: str, mapped: pa.Table, config: Config) -> Lessons:
    """Finds the words that pictures tell, and writes sentences of them.

    Raises:
        UserError: too few pictures decoded, or they tell no word.
    """
    items = files.read_table(source, ["item_id", "title", "attributes"])
    row_of = {item_id: row for row, item_id in enumerate(mapped["item_id"].to_pylist())}
    items = items.filter(pa.array([item_id in row_of for item_id in items["item_id"].to_pylist()], pa.bool_()))
    items = items.take(np.argsort(hash_strings(items["item_id"]), kind="stable"))
    ids, titles = items["item_id"].to_pylist(), items["title"].to_pylist()
    attributes = [row or [] for row in items["attributes"].to_pylist()]
    texts = [text_of(title, row) for title, row in zip(titles, attributes, strict=True)]
    rows = np.array([row_of[item_id] for item_id in ids], np.int64)
    features = features_of(mapped)
    words = seen_words(texts, pooled(features, rows * config.views))
    if not words:
        raise UserError(
            f"The texts of {len(ids):,} pictures have no word that the pictures tell: give titles or attributes that "
            "say what is seen."
        )
    held = np.zeros(len(ids), bool)
    held[-max(1, round(config.held_out * len(ids))) :] = True
    told = [sentences(title, row, words) for title, row in zip(titles, attributes, strict=True)]
    return Lessons(pa.table([ids, rows, texts, told, held], schema=LESSON), words)


def pictures(told: pa.Table, mapped: pa.Table, views: int, encode: object, captions: object) -> Pictures:
    """Returns rows that have sentences as tensors.

    Args:
        told: see `Lessons.told`.
        mapped: features.
        views: of each picture.
        encode, captions: the tokenizers of the Q-Former's texts and of the decoder's.
    """
    said = told["sentences"].to_pylist()
    ends = torch.from_numpy(np.cumsum([0, *map(len, said)]))
    held = torch.tensor(told["held_out"].to_numpy())
    places = torch.arange(len(said))
    return Pictures(
        features=features_of(mapped),
        rows=torch.tensor(told["row"].to_numpy()) * views,
        views=views,
        texts=encode([text for row in said for text in row]),  # type: ignore[operator]
        ends=ends,
        captions=captions([row[0] for row in said]),  # type: ignore[operator]
        train=places[~held],
        valid=places[held],
    )
