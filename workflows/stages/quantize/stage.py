"""Fit a quantizer on all embeddings, or take one over, and give every item its semantic ID."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from models.semantic_ids.collisions import reassign_last_level
from models.semantic_ids.prefixes import number_rows
from models.semantic_ids.quantizer import Quantizer
from operators.columns import matrix_column, matrix_of, positions
from operators.sid_registry import fitted_items, give_sids, inherited_sids
from storage import files
from storage.artifacts import model_digest
from storage.errors import UserError
from storage.hashing import content_order, hash_order, hash_rows
from storage.run import RunDir
from workflows.catalogs.survey import Survey
from workflows.distributed.pools import Workers
from workflows.engine.stage import Context, Result, Stage
from workflows.engine.text import decimal, percent
from workflows.stages.quantize import scores
from workflows.stages.quantize.settings import Config

BATCH_ROWS = 8_192
PIECE_ROWS = files.PART_ROWS


class Coded(NamedTuple):
    """Every item with its codes, in one order."""

    positions: np.ndarray  # int64 [N], rows in `embeddings`
    item_ids: pa.ChunkedArray
    codes: np.ndarray  # int32 [N, L]
    contents: np.ndarray  # uint64 [N], hashes of the embeddings


class Pieces(NamedTuple):
    """Where `encode` has written codes."""

    folder: str
    number: int


class QuantizeStage(Stage[Config]):
    """Fit a quantizer on all embeddings, or take one over, and give every item its semantic ID."""

    config_type = Config
    version = 6
    reads = ("project",)

    def uses(self, config: Config) -> tuple[str, ...]:
        """A SASRec that quantizers are aligned with is fitted as that of generate."""
        return ("generate",) if config.reads_split() and config.collaborative.source == "sasrec" else ()

    def check(self, config: Config, root: str) -> None:
        """Finds an earlier run without a quantizer."""
        if config.previous is not None:
            Quantizer.load(RunDir(config.previous).uri("models", "quantizer"))

    def check_data(self, config: Config, catalog: Survey) -> list[str]:
        """Says when there are more codewords than items."""
        items, large = catalog.items, max(config.sizes(catalog.items))
        if config.previous or not config.codebook_sizes or large <= items:
            return []
        unused = f"{items} items leave most of {large} codewords unused, and hardly any two of them share one"
        return [f"{unused}: write auto for stages.quantize.codebook_sizes"]

    def workers(self, config: Config) -> Workers | None:
        """Returns the workers of the fit; a quantizer that is taken over needs none."""
        return None if config.previous else config.processes

    def run(self, config: Config, context: Context) -> Result:
        """Writes models/quantizer, sids, metrics/quantize.json and metrics/map.

        sids: item_id; codes with the suffix; added, whether the item came after the fit of the quantizer.
        """
        from workflows.stages.quantize.fitting import fit

        run, rows = context.run, files.dataset(context.run.uri("embeddings")).count_rows()
        if rows == 0:
            raise UserError("There are no embeddings to quantize: give the catalogue at least one usable item.")
        history = take_over(config.previous, run) if config.previous else fit(config, context)
        pieces = encode(context)
        name = f"quantize/{context.fingerprint}/sids"
        finish = partial(_write_and_judge, config, run, pieces, context.catalog, context.seed)
        (cards,) = context.pieces(finish, ["cards"], name=name, here=pieces.number == 1)
        if "drift" in cards:
            context.log(f"quantize: {cards['drift']['reason']}")
        run.write_json({**cards, "history": history}, "metrics", "quantize.json")
        metrics = cards["scorecard"]
        context.log(
            f"quantize: codebooks used {', '.join(map(percent, metrics['usage']))}; "
            f"{percent(metrics['collision_share'])} of the items share their codes before deduplication; "
            f"reconstruction cosine {decimal(metrics['reconstruction_cosine'][-1], 3)}"
        )
        return Result(rows_in=rows, rows_out=rows, metrics=metrics)


def _write_and_judge(config: Config, run: RunDir, pieces: Pieces, catalog: str, seed: int, _: str) -> dict[str, Any]:
    """Writes a run's `sids` and `metrics/map`; returns what metrics/quantize.json says of them.

    All that is held of the whole catalogue, ids and codes, is held here.
    """
    quantizer, coded, sids = write_sids(config, run, pieces)
    cards = scores.judge(run, quantizer, catalog, item_ids=coded.item_ids, nearest=coded.codes, sids=sids, seed=seed)
    if config.previous and (new := scores.drift_since_fit(run, quantizer, RunDir(config.previous))):
        cards["drift"] = new
    return cards


def write_sids(config: Config, run: RunDir, pieces: Pieces) -> tuple[Quantizer, Coded, np.ndarray]:
    """Writes a run's `sids`; returns its quantizer, the items' codes under it and their SIDs, int32 [N, L + 1]."""
    quantizer = Quantizer.load(run.uri("models", "quantizer"))
    coded = _read(pieces)
    earlier = RunDir(config.previous) if config.previous else None
    known_ids, known_codes = inherited_sids(run, earlier, levels=coded.codes.shape[1])
    sids = give_sids(
        coded.item_ids,
        spread(run, quantizer, coded) if config.collisions == "sinkhorn" and earlier is None else coded.codes,
        coded.contents,
        known_ids=known_ids,
        known_codes=known_codes,
        always=config.collisions == "always_suffix",
        max_suffixes=config.max_suffixes,
    )
    # no other item may get the SIDs of items that left the catalogue
    gone = (positions(known_ids, coded.item_ids) < 0) & (earlier is not None)
    tables = ((coded.item_ids, sids), (known_ids.filter(pa.array(gone)), known_codes[gone]))
    fitted = coded.item_ids if earlier is None else fitted_items(earlier)
    files.write_parts(
        run.uri("sids"),
        [
            pa.table({"item_id": ids, "codes": matrix_column(of), "added": positions(ids, fitted) < 0})
            for ids, of in tables
        ],
    )
    return quantizer, coded, sids


def take_over(previous: str, run: RunDir) -> list[dict[str, Any]]:
    """Copies the quantizer of an earlier run; a fit that did not happen has no curve.

    Raises:
        UserError: the embeddings were projected in another way.
    """
    earlier = RunDir(previous)
    if model_digest(run.uri("models", "projector")) != model_digest(earlier.uri("models", "projector")):
        raise UserError(
            f"The quantizer of {previous} is for another projection: take that over, too, with "
            f"stages.project.previous={previous}."
        )
    quantizer = Quantizer.load(earlier.uri("models", "quantizer"))
    if model_digest(run.uri("models", "quantizer")) != model_digest(earlier.uri("models", "quantizer")):
        files.remove(run.uri("sids"))  # of another quantizer
    quantizer.save(run.uri("models", "quantizer"))
    return []


def encode(context: Context) -> Pieces:
    """Writes the codes of all items of a run under its quantizer."""
    run = context.run
    name = f"quantize/{context.fingerprint}/codes-{model_digest(run.uri('models', 'quantizer'))}"
    folder = run.uri("checkpoints", name)
    pieces = -(-files.dataset(run.uri("embeddings")).count_rows() // PIECE_ROWS)
    context.pieces(partial(encode_piece, run, folder), range(pieces), name=name, here=pieces == 1)
    return Pieces(folder, pieces)


def _read(pieces: Pieces) -> Coded:
    """Returns all items in hash order."""
    parts = (files.part_uri(pieces.folder, piece) for piece in range(pieces.number))
    found = pa.concat_tables([files.read_table(part) for part in parts])
    order = hash_order(found["item_id"])
    contents = found["content"].to_numpy()[order]
    return Coded(order, found["item_id"].take(pa.array(order)), matrix_of(found["codes"])[order], contents)


def encode_piece(run: RunDir, folder: str, piece: int) -> dict[str, int]:
    """Writes the codes of some items under the quantizer of their run, and the hashes of their embeddings."""
    quantizer, start = Quantizer.load(run.uri("models", "quantizer")), piece * PIECE_ROWS
    rows = files.read_range(run.uri("embeddings"), start, start + PIECE_ROWS, ["item_id", "embedding"])
    vectors = torch.tensor(matrix_of(rows["embedding"]))
    codes = torch.cat([quantizer.encode(part) for part in vectors.split(BATCH_ROWS)])
    columns = {"item_id": rows["item_id"], "codes": matrix_column(codes.numpy()), "content": hash_rows(vectors.numpy())}
    files.write_part(files.part_uri(folder, piece), pa.table(columns))
    return {"rows": rows.num_rows}


def spread(run: RunDir, quantizer: Quantizer, coded: Coded) -> np.ndarray:
    """Codes [N, L] after the last level of items that collide is re-assigned."""
    groups = number_rows(coded.codes)
    colliding = np.flatnonzero(np.bincount(groups)[groups] > 1)
    embeddings = files.dataset(run.uri("embeddings"))
    at = coded.positions[colliding]
    rows = embeddings.take(at, columns=["embedding"], batch_readahead=1, fragment_readahead=1)
    vectors = torch.tensor(matrix_of(rows["embedding"]))

    def distances(rows: np.ndarray) -> torch.Tensor:
        return quantizer.last_distances(vectors[np.searchsorted(colliding, rows)])

    return reassign_last_level(coded.codes, distances, content_order(coded.contents, coded.item_ids))
