"""One feature row per item: the side of a ranker's input that does not depend on the user."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from operators.tokens import attribute_tokens, bucket_ids, prefix_ids, token_ids, word_tokens

BAGS = ("caption", "text", "sid")  # list features of an item, each with an embedding table of its own


@dataclass(frozen=True)
class Buckets:
    """Rows of the embedding tables; every id of a table is below its number."""

    user: int
    item: int
    token: int
    sid: int

    def of(self, table: str) -> int:
        """Rows of the table `user`, `item`, `caption`, `text` or `sid`."""
        return int(getattr(self, table if table in ("user", "item", "sid") else "token"))


def item_features(items: pa.Table, codes: np.ndarray, *, buckets: Buckets, max_tokens: int) -> pa.Table:
    """Item ids and token lists; one code path for the whole catalogue and for a single new item.

    Args:
        items: `item_id`, `caption`, `title`, `description` (strings) and `attributes` (map<string,string>).
        codes: semantic IDs without the deduplication digit, integers [N, L].
        max_tokens: tokens kept per list.

    Returns:
        item_id string; item int64 (hashed id); caption, text, sid list<int64>: tokens of the caption, tokens of
        title, description and attributes, semantic-ID prefixes. A list without tokens is [0].
    """
    texts = pa.array(
        [
            " ".join(part for part in parts if part)
            for parts in zip(items["title"].to_pylist(), items["description"].to_pylist(), strict=True)
        ],
        pa.string(),
    )
    rows = items.num_rows
    attributes = attribute_tokens(items["attributes"])
    text = attributes.vstack(word_tokens(texts))  # attributes first: they survive the limit
    sid = prefix_ids(codes, buckets=buckets.sid)
    return pa.table(
        {
            "item_id": items["item_id"].cast(pa.string()),
            "item": bucket_ids(items["item_id"].to_pylist(), buckets.item),
            "caption": token_ids(word_tokens(items["caption"]), rows, buckets=buckets.token, limit=max_tokens),
            "text": token_ids(text, rows, buckets=buckets.token, limit=max_tokens),
            "sid": pa.ListArray.from_arrays(
                np.arange(rows + 1, dtype=np.int32) * sid.shape[1], pa.array(sid.reshape(-1))
            ),
        }
    )
