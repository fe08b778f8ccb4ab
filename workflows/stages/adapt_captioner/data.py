"""What a captioner is adapted from: pictures, and the words of their items' texts that the pictures tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import torch

from models.qformer.model import CaptionModel
from models.qformer.sentences import sentences, text_of
from models.qformer.training import Pictures
from models.qformer.vision import WIDTH, pooled
from models.qformer.words import seen_words, split_words
from operators.base import KEPT
from operators.columns import positions
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
        ("whole", pa.bool_()),
        ("part", pa.string()),
    ]
)
TRAIN, VALID, TEST = "train", "valid", "test"
LEAST = 32  # pictures
MUCH, HALF = 0.9, 0.5  # a sentence is whole that has more than half of the words of one that says much
BATCH_ROWS = 1_024


class Lessons(NamedTuple):
    """What there is to learn.

    Attributes:
        told: one row for each picture that has sentences, in the order of the pictures' digests: `LESSON`. `row` is the
            picture's among the features; `whole`, whether the first sentence says about as much as those of others;
            `part` is TRAIN, VALID (which chooses the weights) or TEST (for the report).
        words: words that pictures tell, and how well.
        pictures: how many there are, those without sentences with them.
    """

    told: pa.Table
    words: dict[str, float]
    pictures: int


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
    """Returns what the stream made of all pictures that decoded, mapped.

    Returns:
        item_id; digest of the picture, string; features, fixed_size_list<halffloat>[views x WIDTH].
    """
    columns = [("item_id", pa.string()), ("digest", pa.string()), ("features", pa.list_(pa.float16(), views * WIDTH))]
    schema = pa.schema(columns)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in streams.outcome_batches(sink, KEPT, ["item_id", "media_digest", "look"]):
            rows = batch.filter(batch["look"].is_valid())
            values = np.frombuffer(b"".join(rows["look"].to_pylist()), np.float16)
            features = pa.FixedSizeListArray.from_arrays(pa.array(values), views * WIDTH)
            digests = pa.array([digest.hex() for digest in rows["media_digest"].to_pylist()], pa.string())
            yield pa.RecordBatch.from_arrays([rows["item_id"], digests, features], schema=schema)

    return map_table(run, "looks", files.signature(files.join(sink, "rows")), schema, batches)


def features_of(mapped: pa.Table) -> np.ndarray:
    """Returns the features of a mapped table, float16 [pictures x views, WIDTH], without a copy."""
    values: np.ndarray = mapped["features"].chunk(0).flatten().to_numpy()
    return values.reshape(-1, WIDTH)


def lessons(source: str, mapped: pa.Table, config: Config) -> Lessons:
    """Finds the words that pictures tell, and writes sentences of them.

    Of items that share a picture one is taken, since it would stand on both sides of every split.

    Raises:
        UserError: there are too few pictures, or they tell no word.
    """
    items = files.read_table(source, ["item_id", "title", "attributes"])
    seen = pl.DataFrame(mapped.select(["item_id", "digest"])).with_row_index("row").sort("digest", "item_id")
    one_each = seen.unique("digest", keep="first", maintain_order=True)
    chosen = items.take(positions(one_each["item_id"].to_arrow(), items["item_id"]))
    titles, attributes = (chosen[name].to_pylist() for name in ("title", "attributes"))
    texts = [text_of(title, row or ()) for title, row in zip(titles, attributes, strict=True)]
    if len(texts) < LEAST:
        raise UserError(f"{len(texts)} different pictures decoded, and a captioner needs {LEAST}: give more items.")
    rows = one_each["row"].to_numpy().astype(np.int64)
    judged = slice(0, len(rows) - max(1, round(config.held_out * len(rows) / 2)))  # the test part stays apart
    words = seen_words(texts[judged], pooled(features_of(mapped), rows[judged] * config.views))
    said = [sentences(title, row or (), words) for title, row in zip(titles, attributes, strict=True)]
    table = pa.table([chosen["item_id"], rows, texts, said, whole(said), [TRAIN] * len(rows)], schema=LESSON)
    told = table.filter(pc.greater(pc.list_value_length(table["sentences"]), 0))
    if told.num_rows < LEAST:
        raise UserError(
            f"The texts of {len(rows):,} pictures have hardly a word that the pictures tell: give titles or attributes "
            "that say what is seen, with spaces between words."
        )
    held = max(1, round(config.held_out * told.num_rows / 2))
    parts = [TRAIN] * (told.num_rows - 2 * held) + [VALID] * held + [TEST] * held
    place = LESSON.get_field_index("part")
    return Lessons(told.set_column(place, "part", pa.array(parts)), words, len(rows))


def whole(said: list[list[str]]) -> np.ndarray:
    """Returns whose first sentence is whole, bool [N].

    Where some titles name all that is seen and others the thing alone, who learns from both leaves colours out half of
    the time: that a text is silent does not mean that there is nothing to say.
    """
    words = np.array([len(split_words(row[0])) if row else 0 for row in said])
    return words > HALF * np.quantile(words[words > 0], MUCH) if words.any() else words > 0


def pictures(told: pa.Table, mapped: pa.Table, views: int, model: CaptionModel) -> Pictures:
    """Returns rows that have sentences as tensors, in the tokens of a model.

    Args:
        told: see `Lessons.told`.
        mapped: features.
        views: of each picture.
        model: whose tokens the texts are turned into.
    """
    said, places = told["sentences"].to_pylist(), torch.arange(told.num_rows)
    train, valid = (torch.tensor(pc.equal(told["part"], part).to_numpy()) for part in (TRAIN, VALID))
    return Pictures(
        features=features_of(mapped),
        rows=torch.tensor(told["row"].to_numpy()) * views,
        views=views,
        texts=model.encode([text for row in said for text in row]),
        ends=torch.from_numpy(np.cumsum([0, *map(len, said)])),
        captions=model.decoder.encode([row[0] for row in said]),
        whole=torch.tensor(told["whole"].to_numpy()),
        train=places[train],
        valid=places[valid],
    )
