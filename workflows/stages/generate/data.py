"""Reads the training sequences, queries, texts and semantic IDs of recommenders out of a run."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from models.common.jagged import Jagged
from models.common.recommender import Queries
from models.generation.vocabulary import sid_codes
from operators.columns import matrix_of, read_rows
from operators.log.encoding import read_log
from operators.log.sequences import queries, training_sequences
from operators.log.split import Split
from storage.errors import UserError
from storage.run import RunDir


class Data(NamedTuple):
    """Training sequences and queries of recommenders; items are rows of `item_ids`."""

    item_ids: pa.ChunkedArray  # N, in hash order
    sequences: Jagged  # of training
    warm: np.ndarray  # bool [N], items with an event of any kind in training
    valid: Queries
    test: Queries


class SemanticIds(NamedTuple):
    """The semantic IDs of N items as a decoder needs them, see `models.generation.vocabulary.sid_codes`."""

    codes: torch.Tensor  # int64 [N, L']
    sizes: tuple[int, ...]  # codes of each level
    suffixes: bool  # whether the last level is that of the deduplication suffixes


def read_data(run: RunDir, split: Split, *, history: int, repeats: bool) -> Data:
    """Reads the training sequences of a run, and the queries of validation and test.

    Raises:
        UserError: the log cannot be split so, or no user has two positives in training.
    """
    log = read_log(run)
    ids, events = log.items, log.events
    numbers = split.numbers(events)
    sequences = training_sequences(events, numbers)
    if not (sequences.offsets.diff() > 1).any():
        raise UserError("No user has two positives in the training part of the log: give a longer one.")
    parts = (queries(events, numbers, name, history=history, repeats=repeats) for name in ("valid", "test"))
    return Data(ids, sequences, np.isin(np.arange(len(ids)), events.item[numbers == 0]), *parts)


def save_items(run: RunDir, ids: pa.ChunkedArray) -> None:
    """Writes which item every row is, as `RUN/models/generator/items` (item_id)."""
    run.write_table(pa.table({"item_id": ids}), "models", "generator", "items")


def read_texts(run: RunDir, ids: pa.ChunkedArray) -> list[list[str | None]]:
    """Returns titles and captions of the items, None where there is none."""
    items = read_rows(run, ids, "items", columns=["title", "caption"])
    return [items[name].to_pylist() for name in ("title", "caption")]


def read_sids(run: RunDir, ids: pa.ChunkedArray) -> SemanticIds:
    """Returns the semantic IDs of the items.

    Raises:
        ArtifactError: an item has none.
    """
    codebooks = run.read_json("models", "quantizer", "config.json")["codebook_sizes"]
    codes, sizes = sid_codes(matrix_of(read_rows(run, ids, "sids", columns=["codes"])["codes"]), codebooks)
    return SemanticIds(torch.from_numpy(codes), sizes, len(sizes) > len(codebooks))
