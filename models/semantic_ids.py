"""Semantic IDs as they leave the quantizer: the deduplication digit that makes them unique, and their spelling."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl

from storage.errors import UserError
from storage.hashing import hash_order

_TOKEN = re.compile(r"<([a-z])_(\d+)>")


def allocate_digits(
    item_ids: Sequence[str],
    codes: np.ndarray,
    *,
    known_ids: Sequence[str] = (),
    known_codes: np.ndarray | None = None,
) -> np.ndarray:
    """Give every item a digit that no other item under its code prefix has.

    An item that is known under its prefix keeps its digit. The others take the digits after the highest one that was
    ever given under their prefix, in the order of the hash of their ids: neither numbering nor order of arrival
    within a call says anything about popularity or age.

    Args:
        item_ids: N distinct ids.
        codes: their code prefixes, integers [N, L].
        known_ids: M distinct ids that have digits.
        known_codes: their codes with digits, integers [M, L + 1].

    Returns:
        Digits, int32 [N].
    """
    levels = codes.shape[1]
    known = np.empty((0, levels + 1), np.int32) if known_codes is None else known_codes
    # one number per distinct prefix, over known and new items
    _, groups = np.unique(np.concatenate([known[:, :levels], codes]), axis=0, return_inverse=True)
    known_groups, new_groups = np.split(groups.reshape(-1), [len(known)])
    ranks = np.empty(len(codes), np.int64)
    ranks[hash_order(item_ids)] = np.arange(len(codes))
    table = pl.DataFrame(
        {"group": known_groups, "item_id": pl.Series(known_ids, dtype=pl.String), "digit": known[:, levels]},
        schema_overrides={"digit": pl.Int32},
    )
    return (
        pl.DataFrame({"group": new_groups, "item_id": pl.Series(item_ids, dtype=pl.String), "rank": ranks})
        .join(table, on=["group", "item_id"], how="left", maintain_order="left")
        .join(
            table.group_by("group").agg(next_digit=pl.col("digit").max() + 1),
            on="group",
            how="left",
            maintain_order="left",
        )
        .with_columns(
            new=pl.col("rank").rank("ordinal").over("group", pl.col("digit").is_null()) - 1,
        )
        .select(
            pl.coalesce("digit", pl.col("next_digit").fill_null(0) + pl.col("new")).cast(pl.Int32),
        )
        .to_series()
        .to_numpy()
    )


def sid_string(codes: Iterable[int]) -> str:
    """Spell a semantic ID, one token per level.

    >>> sid_string([12, 3, 7, 0])
    '<a_12><b_3><c_7><d_0>'
    """
    return "".join(f"<{letter}_{int(code)}>" for letter, code in zip(string.ascii_lowercase, codes, strict=False))


def parse_sid(text: str) -> tuple[int, ...]:
    """Read a spelled semantic ID back.

    >>> parse_sid("<a_12><b_3><c_7><d_0>")
    (12, 3, 7, 0)

    Raises:
        UserError: it is not one, or its levels are not in order.
    """
    tokens = _TOKEN.findall(text)
    codes = tuple(int(code) for _, code in tokens)
    if not codes or sid_string(codes) != text:
        raise UserError(f"{text!r} is no semantic ID: write it like <a_12><b_3><c_7><d_0>.")
    return codes
