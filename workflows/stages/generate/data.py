"""Reads the training sequences, queries, texts and semantic IDs of recommenders out of a run."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from models.common.jagged import Jagged
from models.common.recommender import Queries
from models.generation.vocabulary import sid_codes
from operators.columns import jagged_of, list_column, matrix_of, read_rows
from operators.log.partitions import item_ids, open_log
from operators.log.sequences import read_drawn, read_limit, split_part, training_sequences, write_drawn, write_hashes
from operators.log.split import Split
from storage import files
from storage.errors import UserError
from storage.mapped import map_columns
from storage.run import RunDir
from workflows.engine.stage import Context


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
    work = partial(_write_part, run, split, run.uri(*folder), most, {"repeats": repeats, "seed": context.seed})
    found = context.pieces(work, numbers, name=name, here=len(numbers) == 1, step=(0, 2))
    if max(part["longest"] for part in found) < 2:
        raise UserError("No user has two positives in the training part of the log: give a longer one.")
    hashes = {name: [part["hashes"][name] for part in found] for name in most}
    queries = draw_queries(context, name, hashes, most, history=history, repeats=repeats, step=(1, 2))
    return Data(run, (*folder, "parts"), **queries), sum(part["positives"] for part in found)


def draw_queries(
    context: Context,
    name: str,
    hashes: dict[str, list[str]],
    most: dict[str, int],
    *,
    history: int,
    repeats: bool,
    step: tuple[int, int],
) -> dict[str, Queries]:
    """Draws samples of the queries of splits, partition by partition; lists are made of those that they hold.

    Args:
        context: of the stage.
        name: folder beside the stage's checkpoints.
        hashes: of every split, the files that `write_hashes` has written of the partitions.
        most: maximum number of queries of every split.
        history, repeats: see `write_data`.
        step: see `Context.pieces`.
    """
    log, name = open_log(context.run), f"{name}/queries"
    limits = {split: read_limit(hashes[split], count) for split, count in most.items()}
    asked = {"history": history, "repeats": repeats, "seed": context.seed}
    work = partial(_write_queries, context.run, context.split, context.run.uri("checkpoints", name), limits, asked)
    numbers = range(log.about.partitions)
    found = context.pieces(work, numbers, name=name, here=len(numbers) == 1, step=step)
    return {
        split: read_drawn(log, [part[split] for part in found], count, seed=context.seed)
        for split, count in most.items()
    }


def _write_part(
    run: RunDir, split: Split, folder: str, most: dict[str, int], asked: dict[str, Any], number: int
) -> dict[str, Any]:
    log = open_log(run)
    part = split_part(log, split, number)
    sequences = training_sequences(part.events, part.split)
    files.write_part(files.part_uri(files.join(folder, "parts"), number), pa.table({"items": list_column(sequences)}))
    hashes = {name: files.part_uri(files.join(folder, "hashes", name), number) for name in most}
    for name, uri in hashes.items():
        write_hashes(uri, log, part, name, most=most[name], **asked)
    lengths = sequences.offsets.diff()
    longest = int(lengths.max()) if len(lengths) else 0
    return {"positives": len(sequences.values), "longest": longest, "hashes": hashes}


def _write_queries(
    run: RunDir, split: Split, folder: str, limits: dict[str, int], asked: dict[str, Any], number: int
) -> dict[str, str]:
    log = open_log(run)
    part = split_part(log, split, number)
    found = {name: files.part_uri(files.join(folder, name), number) for name in limits}
    for name, uri in found.items():
        write_drawn(uri, log, part, name, limit=limits[name], **asked)
    return found


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
