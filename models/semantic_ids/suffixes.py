"""Semantic IDs as they leave the quantizer: the deduplication suffix that makes them unique, and their spelling.

A semantic ID is L codes and a suffix, integers [L + 1]; the suffix -1 stands for none.
"""

from __future__ import annotations

import string
from collections.abc import Iterable

import numpy as np
import polars as pl

from models.semantic_ids.prefixes import number_rows
from storage.errors import UserError
from storage.hashing import Strings, content_order

NO_SUFFIX = -1


def allocate_suffixes(
    item_ids: Strings,
    codes: np.ndarray,
    contents: np.ndarray,
    *,
    always: bool = False,
    max_suffixes: int = 256,
    known_ids: Strings = (),
    known_codes: np.ndarray | None = None,
) -> np.ndarray:
    """Gives every item a suffix that no other item under its code prefix has, or none where it is alone.

    An item that is known under its prefix keeps what it has. The others take the suffixes after the highest one
    that was ever given under their prefix, from 0, in the order of their contents: neither numbering nor order of
    arrival within a call says anything about popularity or age, and an item that is renamed keeps its suffix.

    Args:
        item_ids: N distinct ids.
        codes: their code prefixes, integers [N, L].
        contents: the hashes of their embeddings, uint64 [N], as from `storage.hashing.hash_rows`.
        always: give a suffix to items that are alone, too (Rajput et al., "Recommender Systems with Generative
            Retrieval", NeurIPS 2023, section 3.1).
        max_suffixes: suffixes are below this.
        known_ids: ids of M items that have their semantic IDs, distinct under each prefix.
        known_codes: these semantic IDs, integers [M, L + 1].

    Returns:
        Suffixes, int32 [N].

    Raises:
        UserError: a prefix needs more suffixes than there are.
    """
    levels = codes.shape[1]
    known = np.empty((0, levels + 1), np.int32) if known_codes is None else known_codes
    numbers = number_rows(np.concatenate([known[:, :levels], codes]))
    shared = np.bincount(numbers)[numbers] > 1 if len(numbers) and not always else np.ones(len(numbers), bool)
    of_known, asked = np.split(shared, [len(known)])
    suffixes = np.full(len(codes), NO_SUFFIX, np.int32)  # of items alone under their prefix, most of a catalogue
    ids, names = (pl.Series(values, dtype=pl.String) for values in (item_ids, known_ids))
    ids, codes, contents = ids.filter(asked), codes[asked], contents[asked]
    known_prefixes, prefixes = np.split(numbers[shared], [of_known.sum()])
    places = np.argsort(content_order(contents, ids))
    table = pl.DataFrame(
        {"prefix": known_prefixes, "item_id": names.filter(of_known), "suffix": known[of_known, levels]},
        schema_overrides={"suffix": pl.Int32},
    )
    given = pl.DataFrame({"prefix": prefixes, "place": places}).with_columns(suffix=pl.lit(None, pl.Int32))
    if len(table):
        own = given.select("prefix", item_id=ids).join(
            table, on=["prefix", "item_id"], how="left", maintain_order="left"
        )
        given = given.with_columns(own["suffix"])
    given = (
        given.join(
            table.group_by("prefix").agg(known=pl.len(), start=pl.col("suffix").max() + 1),
            on="prefix",
            how="left",
            maintain_order="left",
        )
        .with_columns(pl.col("known", "start").fill_null(0), new=pl.col("suffix").is_null())
        .with_columns(
            items=pl.col("known") + pl.col("new").sum().over("prefix"),
            next=pl.col("start") + pl.col("place").rank("ordinal").over("prefix", "new") - 1,
        )
        .with_columns(
            suffix=pl.coalesce(
                "suffix", pl.when((pl.col("items") > 1) | always).then("next").otherwise(NO_SUFFIX)
            ).cast(pl.Int32)
        )
    )
    beyond = given.filter(pl.col("new") & (pl.col("suffix") >= max_suffixes))
    if not beyond.is_empty():
        prefix = beyond.sort("items", "prefix", descending=[True, False])["prefix"][0]
        group = given.with_columns(item_id=ids, content=contents)
        group = group.filter(pl.col("new") & (pl.col("prefix") == prefix)).sort("place")
        raise UserError(_too_many(group, sid_string(codes[np.argmax(prefixes == prefix)]), max_suffixes))
    suffixes[asked] = given["suffix"].to_numpy()
    return suffixes


def sid_string(codes: Iterable[int]) -> str:
    """Spells a semantic ID, one token per level, and one for the suffix where there is one.

    >>> sid_string([12, 3, 7, 0])
    '<a_12><b_3><c_7><d_0>'
    >>> sid_string([12, 3, 7, -1])
    '<a_12><b_3><c_7>'
    """
    tokens = zip(string.ascii_lowercase, codes, strict=False)
    return "".join(f"<{letter}_{int(code)}>" for letter, code in tokens if code != NO_SUFFIX)


def _too_many(group: pl.DataFrame, sid: str, max_suffixes: int) -> str:
    """Returns what to say of a prefix whose new items, in order of place, need more suffixes than there are."""
    alike = group.filter(pl.len().over("content") > max_suffixes)  # no quantizer tells these apart
    alike = alike.filter(pl.col("content") == pl.col("content").first())
    shown = ", ".join(map(repr, (group if alike.is_empty() else alike)["item_id"].head(3)))
    if alike.is_empty():
        return (
            f"{group['items'][0]:,} items share the codes {sid} ({shown}, ...), and max_suffixes tells only "
            f"{max_suffixes:,} apart: raise codebook_sizes, add a level to it, or raise max_suffixes."
        )
    return (
        f"{alike.height:,} items with one and the same embedding share the codes {sid} ({shown}, ...), and "
        f"max_suffixes tells only {max_suffixes:,} apart: leave the copies out of the catalogue, or raise max_suffixes."
    )
