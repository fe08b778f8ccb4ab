"""The semantic IDs that a run has given, and how further items get theirs.

`RUN/sids` is written with the fit. SIDs that are given later are added under `RUN/sids_added/DIGEST/`, DIGEST being the
quantizer's, so that a refit starts afresh. Parts are numbered without a gap. A part is only ever created, by a caller
that has read all parts before it; of two callers at a time one fails to create its part, reads the other's and tries
again. So no SID is given twice and none ever changes, wherever files can be created exclusively (local disks, S3, GCS),
and no dead process leaves a lock behind.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from models.semantic_ids.suffixes import allocate_suffixes
from operators.columns import Ids, matrix_column, matrix_of, positions, strings
from storage import files
from storage.artifacts import model_digest
from storage.errors import UserError
from storage.hashing import hash_order, hash_rows
from storage.run import RunDir

REFERENCE_ROWS = 20_000  # of a run's items, that new ones are compared with


def reference_embeddings(run: RunDir) -> torch.Tensor:
    """Embeddings of at most `REFERENCE_ROWS` items of a run, float32 [M, D], chosen by the hash of their ids.

    They are of those that the quantizer was fitted on; where none of them is left, of any.
    """
    embeddings = files.dataset(run.uri("embeddings"))
    ids = embeddings.to_table(columns=["item_id"])["item_id"]
    order = hash_order(ids)
    fitted = positions(ids, fitted_items(run))[order] >= 0
    order = order[fitted] if fitted.any() else order
    rows = embeddings.take(np.sort(order[:REFERENCE_ROWS]), columns=["embedding"])
    return torch.tensor(matrix_of(rows["embedding"]))


def give_sids(
    item_ids: Ids,
    codes: np.ndarray,
    contents: np.ndarray,
    *,
    known_ids: Ids,
    known_codes: np.ndarray,
    always: bool = False,
    max_suffixes: int = 256,
) -> np.ndarray:
    """SIDs of items beside those that are known; a known item keeps its SID, whatever became of its content.

    Args:
        item_ids: N distinct ids.
        codes: integers [N, L], without the suffix.
        contents, always, max_suffixes: see `models.semantic_ids.suffixes.allocate_suffixes`.
        known_ids: M distinct ids that have their SIDs.
        known_codes: these SIDs, int32 [M, L + 1].

    Returns:
        Codes with suffixes, int32 [N, L + 1].

    Raises:
        UserError: a prefix needs more suffixes than there are.
    """
    at = positions(item_ids, known_ids)
    known = at >= 0
    sids = np.empty((len(codes), known_codes.shape[1]), np.int32)
    sids[known] = known_codes[at[known]]
    suffixes = allocate_suffixes(
        strings(item_ids).filter(pa.array(~known)),
        codes[~known],
        contents[~known],
        always=always,
        max_suffixes=max_suffixes,
        known_ids=known_ids,
        known_codes=known_codes,
    )
    sids[~known] = np.column_stack([codes[~known], suffixes])
    return sids


def known_sids(run: RunDir) -> tuple[pa.ChunkedArray, np.ndarray]:
    """Returns all SIDs of a run: those of its fit, and those that were added since.

    Returns:
        M distinct ids, and their codes with suffixes, int32 [M, L + 1].
    """
    return _distinct([run.read_table("sids"), *added_sids(run)])


def fitted_items(run: RunDir) -> pa.ChunkedArray:
    """Returns the ids of the items that the quantizer of a run was fitted on, whichever run fitted it."""
    sids = files.dataset(run.uri("sids"))
    if "added" not in sids.schema.names:  # written before there were runs that go on from another
        return sids.to_table(columns=["item_id"])["item_id"]
    return sids.to_table(columns=["item_id"], filter=~pc.field("added"))["item_id"]


def added_sids(run: RunDir) -> list[pa.Table]:
    """Returns what `add_sids` has added to a run, part by part: item_id, codes with the suffix, embedding."""
    return _added(run, quantizer_digest(run))


def _added(run: RunDir, quantizer: str | None) -> list[pa.Table]:
    folder = _folder(run, quantizer)
    fs, path = files.filesystem(folder)
    names = [name.rsplit("/", 1)[-1] for name in fs.ls(path, detail=False)] if fs.exists(path) else []
    return [files.read_table(files.join(folder, name)) for name in sorted(names) if name.startswith("part-")]


def add_sids(
    run: RunDir, items: pa.Table, *, quantizer: str | None, always: bool = False, max_suffixes: int = 256
) -> set[str]:
    """Gives SIDs to those items that have none, for good; what the run has given already stays as it is.

    Args:
        run: with `sids` and `models/quantizer`.
        items: item_id (distinct), embedding, and codes without the suffix, as `AssignSids` gives them.
        quantizer: `quantizer_digest` of the run when the codes were made.
        always, max_suffixes: see `models.semantic_ids.suffixes.allocate_suffixes`.

    Returns:
        The ids that were new.

    Raises:
        UserError: a prefix needs more suffixes than there are, or the run was fitted anew meanwhile; then nothing is
            added.
    """
    while True:
        if quantizer_digest(run) != quantizer or not files.exists(run.uri("sids")):
            raise UserError(f"The quantizer of {run.root} was fitted anew meanwhile: try once more.")
        added = _added(run, quantizer)
        known_ids, known_codes = _distinct([run.read_table("sids"), *added])
        new = items.filter(positions(items["item_id"], known_ids) < 0)
        ids = new["item_id"].to_pylist()
        if not ids:
            return set()
        sids = give_sids(
            ids,
            matrix_of(new["codes"]),
            hash_rows(matrix_of(new["embedding"])),
            known_ids=known_ids,
            known_codes=known_codes,
            always=always,
            max_suffixes=max_suffixes,
        )
        part = new.select(["item_id", "embedding"]).append_column("codes", matrix_column(sids))
        try:
            _create(files.part_uri(_folder(run, quantizer), len(added)), part)
        except FileExistsError:  # another caller was faster
            continue
        return set(ids)


def inherited_sids(run: RunDir, earlier: RunDir | None, *, levels: int) -> tuple[pa.ChunkedArray, np.ndarray]:
    """Returns what the items of a run, whose quantizer of so many levels is there, get their SIDs beside.

    Of a fresh fit, what was added under the very same quantizer before; of one taken over, all SIDs of the earlier run
    and those that this run has given under it.

    Returns:
        As `known_sids`.

    Raises:
        UserError: both runs have given one SID to different items.
    """
    own = added_sids(run)
    if earlier is not None:
        before = [run.read_table("sids")] if files.exists(run.uri("sids")) else []
        own = [earlier.read_table("sids"), *added_sids(earlier), *before, *own]
    if not own:
        return pa.chunked_array([], pa.string()), np.empty((0, levels + 1), np.int32)
    ids, codes = _distinct(own)
    if earlier is not None and len(np.unique(codes, axis=0)) < len(codes):
        raise UserError(
            f"{run.root} and {earlier.root} have given one SID to different items: begin with a new run directory, and "
            "give SIDs to further items in the newest run alone."
        )
    return ids, codes


def _distinct(tables: Sequence[pa.Table]) -> tuple[pa.ChunkedArray, np.ndarray]:
    """Of an item that was added and then taken into the catalogue, one row."""
    table = pa.concat_tables([part.select(["item_id", "codes"]) for part in tables])
    ids = table["item_id"].combine_chunks()
    table = table.filter(pl.Series(ids).is_first_distinct().to_arrow())
    return table["item_id"], matrix_of(table["codes"])


def quantizer_digest(run: RunDir) -> str | None:
    """Returns what tells one fit of a run's quantizer from another."""
    return model_digest(run.uri("models", "quantizer"))


def _folder(run: RunDir, quantizer: str | None) -> str:
    return run.uri("sids_added", quantizer or "none")


def _create(uri: str, table: pa.Table) -> None:
    """Writes a Parquet file that must not be there yet; it appears whole.

    Raises:
        FileExistsError: it is there.
    """
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    fs, path = files.filesystem(uri)
    if "file" not in fs.protocol:
        fs.pipe_file(path, buffer.getvalue().to_pybytes(), mode="create")
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(buffer.getvalue())
        os.link(temporary, target)  # unlike a move, it refuses a name that is taken
    except PermissionError:  # a filesystem without hard links; a reader may then see a part that is half-written
        with target.open("xb") as file:
            file.write(buffer.getvalue())
    finally:
        temporary.unlink(missing_ok=True)
