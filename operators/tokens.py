"""Item text and codes as ids for embedding bags: words, word pairs, attributes, semantic-ID prefixes.

The hashing trick (Weinberger et al. 2009, arXiv 0902.2206): a token's id is its hash modulo the number of buckets.
Id 0 is kept for "nothing known": an item without a caption gets the list [0], which has a trained embedding, and not an
empty list, whose embedding would be zeros.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa

from storage.hashing import hash_strings

NULL_ID = 0


def bucket_ids(values: list[str], buckets: int, *, seed: int = 0) -> np.ndarray:
    """Hash strings to ids in 1…buckets-1, int64 [N]."""
    return (hash_strings(values, seed=seed) % np.uint64(buckets - 1)).astype(np.int64) + 1


def word_tokens(texts: pa.Array | pa.ChunkedArray) -> pl.DataFrame:
    """Lower-case words, then pairs of neighbouring words, of a string column.

    Returns:
        Columns `row` (uint32, the position in `texts`) and `token` (string); rows without a word do not appear.
    """
    words = (
        pl.DataFrame({"word": pl.Series(pl.from_arrow(texts), dtype=pl.String)})
        .with_row_index("row")
        .with_columns(pl.col("word").str.to_lowercase().str.extract_all(r"\w+"))
        .explode("word")
        .drop_nulls()
    )
    pairs = words.with_columns(
        pl.concat_str("word", pl.col("word").shift(-1).over("row"), separator=" ").alias("word")
    ).drop_nulls()
    return pl.concat([words, pairs]).rename({"word": "token"})


def attribute_tokens(attributes: pa.Array | pa.ChunkedArray) -> pl.DataFrame:
    """`key=value` of every entry of a map<string,string> column, in the form of `word_tokens`.

    A value that lists several ("Drama|Comedy", "red, blue") gives a token for each.
    """
    column = attributes.combine_chunks() if isinstance(attributes, pa.ChunkedArray) else attributes
    entries = column.offsets.to_numpy()
    pairs = pl.DataFrame(
        {
            "row": pl.Series(np.repeat(np.arange(len(column)), np.diff(entries)), dtype=pl.UInt32),
            "key": pl.Series(pl.from_arrow(column.keys[entries[0] : entries[-1]]), dtype=pl.String),
            "value": pl.Series(pl.from_arrow(column.items[entries[0] : entries[-1]]), dtype=pl.String),
        }
    )
    values = pl.col("value").str.replace_all("[|,;]", "|").str.split("|")
    return (
        pairs.with_columns(values)
        .explode("value")
        .drop_nulls()
        .select(
            "row",
            pl.concat_str("key", pl.col("value").str.strip_chars(), separator="=").str.to_lowercase().alias("token"),
        )
    )


def token_ids(tokens: pl.DataFrame, rows: int, *, buckets: int, limit: int, seed: int = 0) -> pa.ListArray:
    """Distinct token ids per row, the first `limit` of them: list<int64> [rows]; [0] where there are none."""
    distinct = tokens.get_column("token").unique()
    ids = pl.DataFrame({"token": distinct, "id": bucket_ids(distinct.to_list(), buckets, seed=seed)})
    kept = (
        tokens.join(ids, on="token", how="left", maintain_order="left")
        .unique(["row", "id"], keep="first", maintain_order=True)
        .group_by("row")
        .agg(pl.col("id").head(limit))
    )
    filled = (
        pl.DataFrame({"row": pl.Series(np.arange(rows), dtype=pl.UInt32)})
        .join(kept, on="row", how="left", maintain_order="left")
        .get_column("id")
        .cast(pl.List(pl.Int64))
        .fill_null(pl.Series([[NULL_ID]], dtype=pl.List(pl.Int64)))
    )
    return filled.to_arrow().cast(pa.list_(pa.int64()))


def prefix_ids(codes: np.ndarray, *, buckets: int, seed: int = 0) -> np.ndarray:
    """Ids of the prefixes (c1), (c1, c2), … (c1 … cL) of semantic IDs.

    Items that share a prefix share its id, so that what is learnt about one serves its neighbours (prefix n-grams:
    Zheng et al. 2025, "Enhancing Embedding Representation Stability in Recommendation Systems with Semantic ID",
    arXiv 2504.02137).

    Args:
        codes: integers [N, L], without the deduplication digit.

    Returns:
        int64 [N, L].
    """
    ids = np.empty(codes.shape, dtype=np.int64)
    for level in range(codes.shape[1]):
        prefixes, inverse = np.unique(codes[:, : level + 1], axis=0, return_inverse=True)
        names = ["-".join(map(str, prefix)) for prefix in prefixes.tolist()]
        ids[:, level] = bucket_ids(names, buckets, seed=seed)[inverse.reshape(-1)]
    return ids
