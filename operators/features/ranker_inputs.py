"""From hashes and rows to the ranker's input tensors: one path for training, evaluation and serving."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from models.common.jagged import Jagged, chained, filled, gather, newest, sliced
from models.ranking.bags import places
from models.ranking.config import HISTORY, ITEM, USER, RankerConfig, Table
from models.ranking.ranker import Ranker, RankerInputs
from models.ranking.schedule import Parts, Piece
from operators.columns import jagged_of, matrix_of, rows_of
from operators.features.tokens import HASH, NULL_ID, table_rows
from storage import files
from storage.errors import ArtifactError
from storage.mapped import map_columns
from storage.run import RunDir


def looked_up(tokens: Jagged, table: Table) -> Jagged:
    """Lists of token hashes as lists of a table's rows.

    A hash embedding takes `table.hashes` rows per token, each by a hash function of its own; their weights say where
    in the table of importance weights the token's are, by one function more.
    """
    hashes, count = tokens.values.numpy(), table.hashes
    rows = [table_rows(hashes, rows=table.rows, function=number) for number in range(count)]
    values = torch.from_numpy(np.stack(rows, axis=1).reshape(-1))
    weights = None
    if table.importance:
        weights = places(torch.from_numpy(table_rows(hashes, rows=table.importance, function=count)), count)
    elif table.weighted:
        weights = places(values, 1)
    return Jagged(values, tokens.offsets * count, weights)


def keyed(features: dict[str, Jagged]) -> KeyedJaggedTensor | None:
    """Features of B rows each as one tensor; None for no feature. All of them have weights, or none has."""
    if not features:
        return None
    first = next(iter(features.values()))
    return KeyedJaggedTensor(
        keys=list(features),
        values=torch.cat([feature.values for feature in features.values()]),
        lengths=torch.cat([feature.offsets.diff() for feature in features.values()]).int(),
        weights=None if first.weights is None else torch.cat([f.weights for f in features.values()]),  # type: ignore[misc]
    )


class ItemFeatures:
    """The item side of a catalogue as a ranker's tables see it, by row of features/items.

    A last row beyond the catalogue stands for "no item": NULL for every list, a NaN embedding. An empty history
    holds it.
    """

    def __init__(self, items: pa.Table, embeddings: pa.Table, config: RankerConfig) -> None:
        """Lays out the tables.

        Args:
            items: features/items.
            embeddings: item_id and embedding, in any order.
            config: of the ranker; its tables but `user` are named like columns of `items`.

        Raises:
            ArtifactError: an item has no embedding, or the ranker knows other tokens.
        """
        if config.hash not in ({}, HASH):
            raise ArtifactError("The ranker knows tokens of another hash function than the features have", "features")
        self._config = config
        self.item_id: list[str] = items["item_id"].to_pylist()
        self.embedding = aligned(items["item_id"], embeddings)  # float32 [N, D]
        if config.content_dim:
            self._content = functional.pad(self.embedding, (0, 0, 0, 1), value=torch.nan)
            known = ~self._content.isnan().any(1, keepdim=True)
            self._known = torch.cat([self._content.where(known, 0.0), known.float()], dim=1)  # to average what is known
        self._lists: dict[str, Jagged] = {}
        for name, table in config.tables.items():
            if name == USER:
                continue
            column = items[name]
            if name == ITEM:  # one id per item
                ids = torch.from_numpy(column.to_numpy().astype(np.int64))
                tokens = Jagged(ids, torch.arange(len(ids) + 1))
            else:
                tokens = jagged_of(column)
            no_item = Jagged(torch.tensor([NULL_ID]), torch.tensor([0, 1]))
            self._lists[name] = looked_up(chained([tokens, no_item]), table)

    def __len__(self) -> int:
        return len(self.item_id)

    def inputs(
        self,
        *,
        user: torch.Tensor,
        history: Jagged,
        rows: torch.Tensor,
        dense: torch.Tensor,
        label: torch.Tensor | None = None,
        keep: torch.Tensor | None = None,
        total: float | None = None,
    ) -> RankerInputs:
        """Returns the ranker's input for B pairs.

        Args:
            user: hashes of user ids, int64 [B]; 0 for an unknown user.
            history: rows of the users' last items; [] is a user without a history.
            rows: rows of the candidates, int64 [B].
            dense: float32 [B, n] in the order of `config.dense`, NaN where unknown.
            label: float32 [B], for training.
            keep: boolean [2, B], for user and item ids; ids masked out are given as unknown.
            total: what the loss is divided by, B unless said.
        """
        batch, config = len(rows), self._config
        lengths = history.offsets.diff()
        bag = filled(history, len(self))
        positions = newest(history, length=config.history, fill=len(self)) if config.history else None
        features: dict[str, Jagged] = {}
        for name, source in self._lists.items():
            found = gather(source, rows)
            features[name] = found if name != ITEM or keep is None else masked(found, keep[1])
            if name not in config.past:
                continue
            if positions is None:
                past = gather(source, bag.values)
                features[HISTORY + name] = past._replace(offsets=past.offsets[bag.offsets])
                continue
            past = gather(source, positions.flatten())
            for place in range(config.history):
                features[f"{HISTORY}{name}.{place}"] = sliced(past, place * batch, (place + 1) * batch)
        if USER in config.tables:
            single = looked_up(Jagged(user, torch.arange(batch + 1)), config.tables[USER])
            features[USER] = single if keep is None else masked(single, keep[0])
        content = history_content = None
        if config.content_dim:
            content = self._content[rows]
            sums = functional.embedding_bag(bag.values, self._known, bag.offsets[:-1], mode="sum")
            history_content = sums[:, :-1] / sums[:, -1:]  # 0 / 0 is NaN, unknown
        return RankerInputs(
            sparse=keyed({name: feature for name, feature in features.items() if feature.weights is None}),
            weighted=keyed({name: feature for name, feature in features.items() if feature.weights is not None}),
            dense=dense,
            label=torch.zeros(batch) if label is None else label,
            rows=torch.tensor(float(batch if total is None else total)),
            content=content,
            history_content=history_content,
            history_length=lengths.clamp_max(config.history) if config.history else None,
        )


def read_embeddings(run: RunDir) -> pa.Table:
    """Returns item_id and embedding of a run's items, mapped: the processes of a node share one copy."""
    return map_columns(run, "embeddings", columns=["item_id", "embedding"])


def aligned(item_ids: pa.ChunkedArray, embeddings: pa.Table) -> torch.Tensor:
    """Returns the embeddings in the order of `item_ids`, float32 [N, D], not to be written to.

    A mapped table that is in this order (see `read_embeddings`) is not copied.

    Raises:
        ArtifactError: an item has none.
    """
    values = matrix_of(rows_of(item_ids, embeddings, "embeddings")["embedding"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)


def masked(source: Jagged, keep: torch.Tensor) -> Jagged:
    """Returns the lists, equally long ones, with NULL in place of the masked ones; keep: boolean [N]."""
    count, weights = len(source.values) // max(len(keep), 1), source.weights
    each = keep.repeat_interleave(count)
    if weights is not None:
        weights = weights.where(each, (torch.arange(len(weights)) % count).float())
    return Jagged(source.values.where(each, NULL_ID), source.offsets, weights)


class Examples:
    """A table of examples (features/train, valid or test) as tensors, M rows."""

    def __init__(self, table: pa.Table, dense: Sequence[str]) -> None:
        self.user = torch.from_numpy(table["user"].to_numpy().astype(np.int64))
        self.rows = torch.from_numpy(table["row"].to_numpy().astype(np.int64))
        self.history = jagged_of(table["history"])
        columns = [table[name].to_numpy().astype(np.float32) for name in dense]
        self.dense = torch.from_numpy(np.stack(columns, axis=1))
        self.label = torch.from_numpy(table["label"].to_numpy().astype(np.float32))

    def __len__(self) -> int:
        return len(self.rows)

    def batch(
        self, items: ItemFeatures, at: torch.Tensor, keep: torch.Tensor | None = None, total: float | None = None
    ) -> RankerInputs:
        """The input for the examples at positions int64 [B]; `keep` and `total` are those of `ItemFeatures.inputs`."""
        return items.inputs(
            user=self.user[at],
            history=gather(self.history, at),
            rows=self.rows[at],
            dense=self.dense[at],
            label=self.label[at],
            keep=keep,
            total=total,
        )


def example_parts(uri: str, dense: Sequence[str]) -> Parts[Examples]:
    """Returns the examples of a split (the folder features/train, valid or test) by partition, a file each.

    What was read last is kept: a split that is read whole each time is read once.
    """
    uris = files.parts(uri)
    columns = ["user", "row", "history", "label", *dense]

    @functools.lru_cache(maxsize=1)
    def read(pieces: tuple[Piece, ...]) -> Examples:
        tables = [files.read_table(uris[part], columns).slice(low, high - low) for part, low, high in pieces]
        return Examples(pa.concat_tables(tables), dense)

    return Parts([files.dataset(each).count_rows() for each in uris], read)


@torch.inference_mode()
def predict(ranker: Ranker, items: ItemFeatures, examples: Examples, *, batch_size: int = 4096) -> np.ndarray:
    """Probabilities of all examples, float64 [M]."""
    logits = [ranker(examples.batch(items, at))[0] for at in torch.arange(len(examples)).split(batch_size)]
    return torch.cat(logits).double().sigmoid().numpy()
