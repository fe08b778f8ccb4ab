"""One feature row per item: the side of a ranker's input that does not depend on the user."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa

from operators.base import set_columns
from operators.features.tokens import (
    NULL_ID,
    Tokens,
    attribute_tokens,
    interest_tokens,
    sid_tokens,
    text_tokens,
    token_lists,
)
from storage.hashing import hash_ids


def item_features(items: pa.Table, codes: np.ndarray, tokens: Tokens) -> pa.Table:
    """Hashed item ids and tokens; one code path for the whole catalogue and for a single new item.

    Args:
        items: `item_id`, `caption`, `title`, `description` (strings), `interests` (list<string>) and `attributes`
            (map<string,string>).
        codes: semantic IDs without the deduplication suffix, integers [N, L].
        tokens: how texts become tokens.

    Returns:
        item_id string; item int64 (hash of the id); caption, interests, title, text, sid list<int64>: hashes of the
        tokens of the caption, of the interests, of the title, of attributes, title and description together, and of
        the semantic ID. A list without tokens is [0].
    """
    described = pl.DataFrame(items.select(["title", "description"])).select(
        pl.concat_str(pl.all().cast(pl.String), separator=" ", ignore_nulls=True)
    )
    text = attribute_tokens(items["attributes"]).vstack(  # attributes first: they survive the limit
        text_tokens(described.to_series().to_arrow(), tokens)
    )
    rows, limit = items.num_rows, tokens.max_tokens
    ids = items["item_id"].cast(pa.string())
    return pa.table(
        {
            "item_id": ids,
            "item": hash_ids(ids),
            "caption": token_lists(text_tokens(items["caption"], tokens), rows, limit=limit),
            "interests": token_lists(interest_tokens(items["interests"], tokens), rows, limit=limit),
            "title": token_lists(text_tokens(items["title"], tokens), rows, limit=limit),
            "text": token_lists(text, rows, limit=limit),
            "sid": token_lists(sid_tokens(codes), rows, limit=2 * codes.shape[1]),
        }
    )


def as_trained(features: pa.Table, warm: np.ndarray, trained: np.ndarray) -> pa.Table:
    """Returns features of items as training has seen them.

    Items that it never saw get the id of the unknown item, as users do, and so does of semantic IDs every token that no
    item in training has.

    Args:
        features: of `item_features`.
        warm: which items training saw, bool [N].
        trained: hashes of the tokens of their semantic IDs.
    """
    sids = features["sid"].combine_chunks()
    seen = {
        "item": pa.array(np.where(warm, features["item"].to_numpy(), NULL_ID)),
        "sid": pa.ListArray.from_arrays(sids.offsets, np.where(np.isin(sids.values, trained), sids.values, NULL_ID)),
    }
    return set_columns(features, seen)
