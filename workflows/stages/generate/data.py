"""Reads the training sequences, queries, texts and semantic IDs of recommenders out of a run."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import pyarrow as pa
import torch

from models.common.jagged import Jagged
from models.common.recommender import Queries
from models.generation.vocabulary import sid_codes
from operators.columns import jagged_of, list_column, matrix_of, read_rows
from operators.log.partitions import item_ids, open_log
from operators.log.sequences import read_queries, split_part, training_sequences
from operators.log.split import Split
from storage import files
from storage.errors import UserError
from storage.mapped import map_columns
from storage.run import RunDir
from workflows.engine.stage import Context

SMALL = 1_000_000  # positives that the process of a run works on by itself


@dataclass(frozen=True)
class Data:
    """What recommenders are fitted on; items are rows of `item_ids`. What is large is mapped by whoever asks for it.

    Attributes:
        run, parts: the run, and the folder of its training sequences.
        valid, test: samples of the queries of validation and test.
    """

    run: RunDir
    parts: tuple[str, ...]
    valid: Queries
    test: Queries | None = None

    @property
    def item_ids(self) -> pa.ChunkedArray:
        """The ids of the items, N in hash order."""
        return item_ids(self.run)

    @property
    def sequences(self) -> Jagged:
        """The training sequences, 8 bytes for each positive in a file that the processes of a node map."""
        return _sequences(self.run, *self.parts)


class SemanticIds(NamedTuple):
    """The semantic IDs of N items as a decoder needs them, see `models.generation.vocabulary.sid_codes`."""

    codes: torch.Tensor  # int64 [N, L']
    sizes: tuple[int, ...]  # codes of each level
    suffixes: bool  # whether the last level is that of the deduplication suffixes


def write_data(context: Context, stage: str, *, history: int, repeats: bool, most: dict[str, int]) -> tuple[Data, int]:
    """Writes the training sequences of a run, partition by partition, and draws queries of validation and test.

    Args:
        context: of the stage.
        stage: its name.
        history: positives of a query's history that are kept.
        repeats: whether items are asked for that the user had met before.
        most: maximum number of queries of `valid`, and of `test` if they are wanted.

    Returns:
        The data, and the number of positives in training.

    Raises:
        UserError: the log cannot be split so, or no user has two positives in training.
    """
    run, log, split = context.run, open_log(context.run), context.split
    log.cuts(split)  # before any piece asks for them
    name = f"{stage}/{context.fingerprint}/sequences"
    folder = ("checkpoints", stage, context.fingerprint, "sequences")
    numbers = range(log.about.partitions)
    work = partial(_write_part, run, split, run.uri(*folder, "parts"))
    found = context.pieces(work, numbers, name=name, here=len(numbers) == 1)
    if max(part["longest"] for part in found) < 2:
        raise UserError("No user has two positives in the training part of the log: give a longer one.")
    read = partial(read_queries, log, split, history=history, repeats=repeats, seed=context.seed)
    queries = {name: read(name, most=count) for name, count in most.items()}
    return Data(run, (*folder, "parts"), **queries), sum(part["positives"] for part in found)


def _write_part(run: RunDir, split: Split, folder: str, number: int) -> dict[str, int]:
    part = split_part(open_log(run), split, number)
    sequences = training_sequences(part.events, part.split)
    files.write_part(files.part_uri(folder, number), pa.table({"items": list_column(sequences)}))
    lengths = sequences.offsets.diff()
    return {"positives": len(sequences.values), "longest": int(lengths.max()) if len(lengths) else 0}


@functools.lru_cache(maxsize=1)
def _sequences(run: RunDir, *parts: str) -> Jagged:
    return jagged_of(map_columns(run, *parts, columns=["items"])["items"])


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
