"""From ids and rows to the ranker's input tensors: one path for training, evaluation and serving."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from models.ranker import FIELDS, Ranker, RankerInputs
from operators.items import BAGS
from operators.tokens import NULL_ID
from storage.errors import UserError

Lists = tuple[torch.Tensor, torch.Tensor]  # int64 values of all lists one after the other, int64 offsets [N+1]


def lists(column: pa.Array | pa.ChunkedArray) -> Lists:
    """A list column as tensors, straight from its Arrow buffers."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.to_numpy()[offsets[0] : offsets[-1]].astype(np.int64)
    return torch.from_numpy(values), torch.from_numpy(offsets - offsets[0])


def gather(source: Lists, rows: torch.Tensor) -> Lists:
    """The lists at `rows`, int64 [M]."""
    values, offsets = source
    lengths = (offsets[1:] - offsets[:-1])[rows]
    ends = functional.pad(lengths.cumsum(0), (1, 0))
    return values[torch.repeat_interleave(offsets[rows] - ends[:-1], lengths) + torch.arange(int(ends[-1]))], ends


class ItemFeatures:
    """The item side of a catalogue, by row of features/items.

    A last row beyond the catalogue stands for "no item": the unknown id, [0] for every list, a NaN embedding. An empty
    history holds it.
    """

    def __init__(self, items: pa.Table, embeddings: pa.Table) -> None:
        """Lay out the tables.

        Args:
            items: features/items.
            embeddings: item_id and embedding, in any order.

        Raises:
            UserError: an item has no embedding.
        """
        self.item_id: list[str] = items["item_id"].to_pylist()
        where = pa.compute.index_in(items["item_id"], embeddings["item_id"])
        if where.null_count:
            raise UserError(f"{where.null_count} items have no embedding: run again with --from project.")
        vectors = embeddings["embedding"].combine_chunks().take(where.combine_chunks())
        content = torch.from_numpy(vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float32))
        self.embedding = content.reshape(len(vectors), -1)  # float32 [N, D]
        self._content = functional.pad(self.embedding, (0, 0, 0, 1), value=torch.nan)
        ids = torch.from_numpy(items["item"].to_numpy().astype(np.int64))
        self._lists = {"item": (functional.pad(ids, (0, 1), value=NULL_ID), torch.arange(len(ids) + 2))}
        for bag in BAGS:
            values, offsets = lists(items[bag])
            self._lists[bag] = (
                functional.pad(values, (0, 1), value=NULL_ID),
                torch.cat([offsets, offsets[-1:] + 1]),
            )

    def __len__(self) -> int:
        return len(self.item_id)


def ranker_inputs(
    items: ItemFeatures,
    *,
    user: torch.Tensor,
    history: Lists,
    rows: torch.Tensor,
    dense: torch.Tensor,
    label: torch.Tensor | None = None,
    keep: torch.Tensor | None = None,
) -> RankerInputs:
    """The ranker's input for B pairs.

    Args:
        user: hashed user ids, int64 [B]; 0 for an unknown user.
        history: rows of the users' last items; [] is a user without a history.
        rows: rows of the candidates, int64 [B].
        dense: float32 [B, n] in the order of the ranker's `config.dense`, NaN where unknown.
        label: float32 [B], for training.
        keep: boolean [2, B], for user and item ids; ids masked out are given as unknown.
    """
    batch = len(rows)
    values, offsets = history
    lengths = offsets.diff()
    filled = functional.pad(lengths.clamp_min(1).cumsum(0), (1, 0))
    past = torch.full((int(filled[-1]),), len(items))
    past[torch.repeat_interleave(filled[:-1] - offsets[:-1], lengths) + torch.arange(len(values))] = values
    single = torch.arange(batch + 1)
    features: dict[str, Lists] = {"user": (user, single)}
    for name, source in items._lists.items():
        features[name] = gather(source, rows)
        past_values, past_offsets = gather(source, past)
        features[f"history_{name}"] = (past_values, past_offsets[filled])
    if keep is not None:
        for name, mask in zip(("user", "item"), keep, strict=True):
            features[name] = (features[name][0].where(mask, NULL_ID), single)
    sparse = KeyedJaggedTensor(
        keys=list(FIELDS),
        values=torch.cat([features[name][0] for name in FIELDS]),
        lengths=torch.cat([features[name][1].diff() for name in FIELDS]).int(),
    )
    return RankerInputs(
        sparse=sparse,
        dense=dense,
        content=items._content[rows],
        history_content=functional.embedding_bag(past, items._content, filled[:-1], mode="mean"),
        label=torch.zeros(batch) if label is None else label,
    )


class Examples:
    """A table of examples (features/train, valid or test) as tensors, M rows."""

    def __init__(self, table: pa.Table, dense: Sequence[str]) -> None:
        self.user = torch.from_numpy(table["user"].to_numpy().astype(np.int64))
        self.rows = torch.from_numpy(table["row"].to_numpy().astype(np.int64))
        self.history = lists(table["history"])
        columns = [table[name].to_numpy().astype(np.float32) for name in dense]
        self.dense = torch.from_numpy(np.stack(columns, axis=1))
        self.label = torch.from_numpy(table["label"].to_numpy().astype(np.float32))

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, items: ItemFeatures, at: torch.Tensor, keep: torch.Tensor | None = None) -> RankerInputs:
        """The input for the examples at positions int64 [B]."""
        return ranker_inputs(
            items,
            user=self.user[at],
            history=gather(self.history, at),
            rows=self.rows[at],
            dense=self.dense[at],
            label=self.label[at],
            keep=keep,
        )


@torch.inference_mode()
def predict(ranker: Ranker, items: ItemFeatures, examples: Examples, *, batch_size: int = 4096) -> np.ndarray:
    """Probabilities of all examples, float64 [M]."""
    logits = [ranker(examples.batch(items, at)) for at in torch.arange(len(examples)).split(batch_size)]
    return torch.cat(logits).double().sigmoid().numpy()
