"""Documents of different lengths in rows of one length, none of which sees another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from models.common.jagged import Jagged, gather
from storage.errors import UserError

IGNORED = -100  # no target


class Batch(NamedTuple):
    """Packed documents: R rows of T tokens. A token attends to itself and to earlier ones of its own document."""

    tokens: torch.Tensor  # int64 [R, T]
    positions: torch.Tensor  # int64 [R, T], from 0 in each document
    document: torch.Tensor  # int64 [R, T], number within the row, from 1; 0 is padding
    targets: torch.Tensor  # int64 [R, T], the token that follows where it belongs to a response, else -100
    weights: torch.Tensor  # float32 [R, T], of the targets, 0 elsewhere; each response weighs 1 in all

    def mask(self) -> torch.Tensor:
        """What attends to what, bool [R, 1, T, T]; padding to padding, so that every token attends to something."""
        same = self.document[:, :, None] == self.document[:, None, :]
        return same.tril()[:, None]


def pack(documents: Jagged, *, tokens_per_row: int, rows: int, pad: int) -> list[Batch]:
    """Puts documents into rows, the longest first, each into the first row that has room for it.

    A document that is longer than a row keeps its first token and loses the oldest others of its prompt.

    Args:
        documents: D lists of tokens, none empty. Their weights are 0 in the prompt and sum to 1 over each response; the
            first token is the prompt's.
        tokens_per_row: at most; a batch is no wider than its fullest row.
        rows: of a batch, at most.
        pad: the token that fills a row.

    Returns:
        As many batches as it takes; none without documents.

    Raises:
        UserError: the responses of a document do not fit into a row.
    """
    documents = _shortened(documents, tokens_per_row)
    lengths = documents.offsets.diff()
    longest_first = lengths.argsort(descending=True, stable=True)
    row = torch.empty_like(lengths)
    row[longest_first] = torch.from_numpy(_first_fit(lengths[longest_first].numpy(), tokens_per_row))
    by_row = row.argsort(stable=True)
    batch_of = row[by_row] // rows
    return [
        _batch(gather(documents, members), row[members] % rows, pad)
        for members in by_row.split(torch.bincount(batch_of).tolist())
    ]


def _shortened(documents: Jagged, limit: int) -> Jagged:
    """Returns the documents cut to `limit` tokens, from their second token on."""
    lengths, weights = documents.offsets.diff(), documents.weights
    position = torch.arange(len(documents.values)) - documents.offsets[:-1].repeat_interleave(lengths)
    excess = (lengths - limit).clamp_min(0)
    dropped = (position > 0) & (position <= excess.repeat_interleave(lengths))
    if limit < 1 or weights[dropped].any():  # type: ignore[index]
        raise UserError(
            f"Rows of {limit} tokens are too short for a document of {int(lengths.max())}: raise tokens_per_row, or "
            "lower history."
        )
    offsets = torch.cat([documents.offsets[:1], (lengths - excess).cumsum(0)])
    return Jagged(documents.values[~dropped], offsets, weights[~dropped])  # type: ignore[index]


def _first_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Returns the row of every document, int64 [D], for lengths in the order in which they are placed."""
    room = np.full(len(lengths), capacity)
    row = np.empty(len(lengths), np.int64)
    used = 0
    for at, length in enumerate(lengths):
        row[at] = np.argmax(room[: used + 1] >= length)
        room[row[at]] -= length
        used = max(used, row[at] + 1)
    return row


def _batch(documents: Jagged, row: torch.Tensor, pad: int) -> Batch:
    """Documents, sorted by their rows [M], side by side in them."""
    lengths, starts = documents.offsets.diff(), documents.offsets[:-1]
    _, members = row.unique_consecutive(return_counts=True)
    first = (members.cumsum(0) - members).repeat_interleave(members)  # document that opens the row, of every one
    flat = torch.arange(len(documents.values))
    token_row = row.repeat_interleave(lengths)
    column = flat - starts[first].repeat_interleave(lengths)
    number = torch.arange(len(row)) - first + 1

    follows = torch.ones(len(flat), dtype=torch.bool)  # whether the next token is of the same document
    follows[documents.offsets[1:] - 1] = False
    weights = documents.weights.roll(-1) * follows  # type: ignore[union-attr]
    parts = (
        (documents.values, pad),
        (flat - starts.repeat_interleave(lengths), 0),
        (number.repeat_interleave(lengths), 0),
        (documents.values.roll(-1).where(weights > 0, IGNORED), IGNORED),
        (weights, 0),
    )
    shape = len(members), int(column.max()) + 1
    return Batch(*(_scattered(values, token_row, column, shape, fill) for values, fill in parts))


def _scattered(
    values: torch.Tensor, row: torch.Tensor, column: torch.Tensor, shape: tuple[int, int], fill: int
) -> torch.Tensor:
    found = torch.full(shape, fill, dtype=values.dtype)
    found[row, column] = values
    return found
