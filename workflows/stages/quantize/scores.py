"""What a run's semantic IDs are worth, beside naive ones; and how a quantizer that was taken over fits new items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch

from models.semantic_ids.drift import drift
from models.semantic_ids.layout import map_table
from models.semantic_ids.quality import collisions, known_prefixes, scorecard, usage
from models.semantic_ids.quantizer import RQKMEANS, Architecture, Quantizer
from models.semantic_ids.rqkmeans import fit_rqkmeans
from models.semantic_ids.suffixes import allocate_suffixes
from models.semantic_ids.training_rows import collect
from operators.columns import filled_matrix, matrix_of, positions
from operators.sid_registry import known_sids, reference_embeddings
from storage import files
from storage.hashing import hash_rows
from storage.run import RunDir

Naive: TypeAlias = tuple[Quantizer, torch.Tensor, np.ndarray, np.ndarray]
SCORED_ITEMS = 100_000  # of a larger catalogue, what is decoded, fitted on for comparison, and drawn


def judge(
    run: RunDir,
    quantizer: Quantizer,
    catalog: str,
    *,
    item_ids: pa.ChunkedArray,
    nearest: np.ndarray,
    sids: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """Returns the scorecard of a run's SIDs and of naive ones, and the map of the catalogue, written to `metrics/map`.

    Args:
        catalog: of the run, which may know the true attributes of its items.
        item_ids: all items, in hash order.
        nearest: codes as the quantizer gives them, int32 [N, L].
        sids: codes with the suffix as the items have them, int32 [N, L + 1].

    Returns:
        `scorecard`, and `naive` where the items have text.
    """
    drawn = item_ids[:SCORED_ITEMS].to_pylist()
    codes, suffixes = sids[:, :-1], sids[:, -1]
    vectors = _embeddings(run, drawn)
    shown = {"attributes": _attributes(run, catalog, drawn), "seed": seed}
    card = scorecard(quantizer, vectors, codes[: len(drawn)], suffixes[: len(drawn)], **shown)
    # what needs no embedding is counted over all, and collisions before any code was re-assigned
    before, after = collisions(nearest), collisions(sids)
    card |= usage(codes, quantizer.architecture.codebook_sizes)
    card |= {"known_prefixes": known_prefixes(codes, seed=seed)}
    card |= {"collision_share": before["share"], "largest_collision": before["largest"]}
    card |= {"collision_share_after": after["share"]}
    cards = {"scorecard": card}
    other = None
    if naive := _naive_sids(run, drawn, quantizer.architecture.codebook_sizes, seed=seed):
        cards["naive"] = scorecard(*naive, **shown)
        other = naive[2]
    table = map_table(drawn, vectors.numpy(), codes[: len(drawn)], other, seed=seed)
    run.write_table(table, "metrics", "map")
    return cards


def drift_since_fit(run: RunDir, quantizer: Quantizer, earlier: RunDir) -> dict[str, Any] | None:
    """Tells how a quantizer that was taken over fits the items of a run that came after its fit.

    Of all of them, and of those that the earlier run did not know: a shift of one week drowns among many, and one that
    goes slowly shows in no single week. A refit pays where either says so.

    Returns:
        See `drift`, of all of them, with `newest`, the same of the newest; the verdict is that of both. None where
        there is no item to judge.
    """
    sids = run.read_table("sids", columns=["item_id", "added"])
    ids = run.read_table("embeddings", columns=["item_id"])["item_id"]
    added = sids["item_id"].filter(sids["added"])
    added = added.filter(pa.array(positions(added, ids) >= 0))
    newest = added.filter(pa.array(positions(added, known_sids(earlier)[0]) < 0))
    if not len(added):
        return None
    old = reference_embeddings(run)
    found = drift(quantizer, old, _embeddings(run, added[:SCORED_ITEMS].to_pylist()))
    if not 0 < len(newest) < len(added):
        return found
    last = drift(quantizer, old, _embeddings(run, newest[:SCORED_ITEMS].to_pylist()))
    if last["refit"] and not found["refit"]:
        found |= {"refit": True, "reason": f"of the newest {len(newest):,} items alone, {last['reason']}"}
    return {**found, "newest": last}


def _naive_sids(run: RunDir, item_ids: Sequence[str], sizes: tuple[int, ...], *, seed: int) -> Naive | None:
    """Returns the quantizer, text vectors, codes and suffixes of naive semantic IDs; None where no item has text.

    They are residual k-means on the text vector alone: no vector of a picture, no fusion, no learning. An item without
    text has the mean of all.
    """
    texts, known = filled_matrix(_column_of(run.uri("items"), item_ids, "text_vector"))
    if not known.any():
        return None
    texts[~known] = texts[known].mean(0)
    vectors = collect([(texts, np.empty((len(texts), 0), np.float32))], seed=seed)
    quantizer = fit_rqkmeans(vectors, Architecture(RQKMEANS, texts.shape[1], sizes, texts.shape[1]), seed=seed)
    embeddings = torch.from_numpy(texts)
    codes = quantizer.encode(embeddings).numpy()
    suffixes = allocate_suffixes(item_ids, codes, hash_rows(texts), max_suffixes=len(item_ids))
    return quantizer, embeddings, codes, suffixes


def _attributes(run: RunDir, catalog: str, item_ids: Sequence[str]) -> pa.ChunkedArray:
    """Returns the attributes of these items, and beside them what a generated catalogue knows to be true of them."""
    column = _column_of(run.uri("catalog", "items"), item_ids, "attributes")
    uri = files.join(catalog, "truth_items.parquet")
    if not files.exists(uri):
        return column
    from workflows.catalogs.synthetic.truth import true_attributes  # imports what draws pictures

    true = (
        [(f"true {key}", value) for key, value in row.items() if value]
        for row in true_attributes(uri, item_ids).to_pylist()
    )
    rows = zip(column.to_pylist(), true, strict=True)
    return pa.chunked_array([pa.array([[*(own or ()), *shown] for own, shown in rows], column.type)])


def _embeddings(run: RunDir, item_ids: Sequence[str]) -> torch.Tensor:
    return torch.tensor(matrix_of(_column_of(run.uri("embeddings"), item_ids, "embedding")))


def _column_of(uri: str, item_ids: Sequence[str], column: str) -> pa.ChunkedArray:
    """Reads a column of a run's table for these items alone, in this order."""
    table = files.dataset(uri)
    at = positions(item_ids, table.to_table(columns=["item_id"])["item_id"])
    if np.array_equal(at, np.arange(len(at))):  # the first ones
        return files.read_range(uri, 0, len(at), [column])[column]
    return table.take(at, columns=[column], batch_readahead=1, fragment_readahead=1)[column]
