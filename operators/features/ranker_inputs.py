"""From hashes and rows to the ranker's input tensors: one path for training, evaluation and serving."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from models.common.jagged import Jagged, chained, filled, from_arrays, gather, newest, shared, sliced
from models.ranking.bags import places
from models.ranking.config import HISTORY, ITEM, LONG, SID, USER, RankerConfig, Table
from models.ranking.ranker import Kept, Ranker, RankerInputs
from models.ranking.schedule import Parts, Piece
from models.semantic_ids.quantizer import Quantizer
from operators.columns import jagged_of, list_column, matrix_column, matrix_of, rows_of
from operators.features.long_history import LISTED
from operators.features.tokens import HASH, NULL_ID, table_rows
from storage import files
from storage.artifacts import model_digest
from storage.errors import ArtifactError
from storage.mapped import BATCH_ROWS, map_columns, map_table
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


def keyed_apart(features: dict[str, Jagged]) -> tuple[KeyedJaggedTensor | None, KeyedJaggedTensor | None]:
    """Returns the features without weights, and those with them, as a ranker's bags take them."""
    plain = {name: feature for name, feature in features.items() if feature.weights is None}
    return keyed(plain), keyed({name: feature for name, feature in features.items() if name not in plain})


class ItemFeatures:
    """The item side of a catalogue as a ranker's tables see it, by row of features/items.

    A last row beyond the catalogue stands for "no item": NULL for every list, a NaN embedding. An empty history
    holds it.
    """

    def __init__(
        self, embedding: torch.Tensor, rows: pa.Table, config: RankerConfig, decoded: torch.Tensor | None = None
    ) -> None:
        """Copies nothing of what it is given, which may be mapped; see `laid_out` and `read_items`.

        Args:
            embedding: of N items, float32 [N, D].
            rows: of `token_rows`, in one chunk.
            config: of the ranker.
            decoded: what semantic IDs decode to, float32 [N, D], where the ranker reads it; see `read_decoded`.
        """
        self.embedding, self._config = embedding, config
        self._behind: ItemFeatures | None = None
        self._vectors = [embedding] if config.content_dim > config.decoded_dim else []
        self._vectors += [] if decoded is None else [decoded]
        self.lists: dict[str, Jagged] = {}
        for name, table in _item_tables(config).items():
            lists, weights = rows[name].chunk(0), None
            if table.weighted:
                weights = shared(rows[f"{name}.weights"].chunk(0).values.to_numpy())
            offsets = shared(lists.offsets.to_numpy())  # int32, which `gather` takes, too
            self.lists[name] = Jagged(shared(lists.values.to_numpy()), offsets, weights)

    def __len__(self) -> int:
        return len(self.embedding)

    def followed(self, others: ItemFeatures) -> ItemFeatures:
        """Returns these items with others behind the row that stands for "no item"; copies neither."""
        both = copy.copy(self)
        both._behind = others
        return both

    def vectors(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the vectors that the ranker reads of items, float32 [B, content_dim]."""
        if self._behind is None:
            return torch.cat([part[rows] for part in self._vectors], dim=1)
        behind = rows > len(self)
        found = torch.empty(len(rows), self._config.content_dim)
        found[~behind] = torch.cat([part[rows[~behind]] for part in self._vectors], dim=1)
        found[behind] = self._behind.vectors(rows[behind] - len(self) - 1)
        return found

    def tokens(self, name: str, rows: torch.Tensor) -> Jagged:
        """Returns what items look up in a table."""
        if self._behind is None:
            return gather(self.lists[name], rows)
        behind = rows > len(self)
        one = gather(self.lists[name], rows[~behind])
        other = gather(self._behind.lists[name], rows[behind] - len(self) - 1)
        return gather(chained([one, other]), behind.sort(stable=True).indices.argsort())

    def inputs(
        self,
        *,
        user: torch.Tensor,
        history: Jagged,
        rows: torch.Tensor,
        dense: torch.Tensor,
        long: Jagged | None = None,
        label: torch.Tensor | None = None,
        keep: Kept | None = None,
        total: float | None = None,
    ) -> RankerInputs:
        """Returns the ranker's input for B pairs.

        Args:
            user: hashes of user ids, int64 [B]; 0 for an unknown user.
            history: rows of the users' last items; [] is a user without a history.
            rows: rows of the candidates, int64 [B].
            dense: float32 [B, n] in the order of `config.dense`, NaN where unknown.
            long: second histories, where the ranker reads them; see `operators.features.long_history`.
            label: float32 [B], for training.
            keep: what the rows tell of the user's and the item's ids, for training; all of it where it is None.
            total: what the loss is divided by, B unless said.
        """
        batch, config = len(rows), self._config
        given = {HISTORY: history} if long is None else {HISTORY: history, LONG: long}
        pasts = {kind: given[kind] for kind in config.histories}
        bags = {kind: filled(past, len(self)) for kind, past in pasts.items()}
        attended = {kind: (past, config.histories[kind]) for kind, past in pasts.items() if config.history}
        lengths = {kind: past.offsets.diff().clamp_max(most) for kind, (past, most) in attended.items()}
        positions = {k: newest(past, length=n, fill=len(self)).flatten() for k, (past, n) in attended.items()}
        features: dict[str, Jagged] = {}
        for name, source in self.lists.items():
            found = gather(source, rows)
            if keep is not None and name == ITEM:
                found = masked(found, keep.item)
            elif keep is not None and name == SID:
                found = masked(found, of_levels(found, keep.levels, hashes=config.tables[SID].hashes))
            features[name] = found
            for kind, length in config.histories.items() if config.history and name in config.past else ():
                past = gather(source, positions[kind])
                for place in range(length):
                    features[f"{kind}{name}.{place}"] = sliced(past, place * batch, (place + 1) * batch)
        if not config.history:
            features |= {key: bag for kind in config.histories for key, bag in self.bagged(kind, bags[kind]).items()}
        if USER in config.tables:
            single = looked_up(Jagged(user, torch.arange(batch + 1)), config.tables[USER])
            features[USER] = single if keep is None else masked(single, keep.user)
        content = history_content = None
        if config.content_dim:
            content, history_content = self.vectors(rows), self.mean(bags[HISTORY])
        sparse, weighted = keyed_apart(features)
        return RankerInputs(
            sparse=sparse,
            weighted=weighted,
            dense=dense,
            label=torch.zeros(batch) if label is None else label,
            rows=torch.tensor(float(batch if total is None else total)),
            content=content,
            history_content=history_content,
            history_length=lengths.get(HISTORY),
            long_length=lengths.get(LONG),
        )

    def bagged(self, kind: str, lists: Jagged) -> dict[str, Jagged]:
        """Returns the tokens of all items of each list as one bag, a feature for each table that looks at them."""
        found = {}
        for name in self._config.past:
            tokens = self.tokens(name, lists.values)
            found[kind + name] = tokens._replace(offsets=tokens.offsets[lists.offsets])
        return found

    def mean(self, lists: Jagged) -> torch.Tensor:
        """Returns the mean of the known vectors of each list, float32 [B, content_dim]; NaN where there is none."""
        items, at = lists.values.unique(return_inverse=True)
        nothing = items == len(self)
        vectors = self.vectors(items - nothing.long())
        known = ~nothing[:, None] & ~vectors.isnan().any(1, keepdim=True)
        vectors = torch.cat([vectors.where(known, 0.0), known.float()], dim=1)
        sums = functional.embedding_bag(at, vectors, lists.offsets[:-1], mode="sum")
        return sums[:, :-1] / sums[:, -1:]  # 0 / 0 is NaN, unknown


def laid_out(
    items: pa.Table, embeddings: pa.Table, config: RankerConfig, decoded: torch.Tensor | None = None
) -> ItemFeatures:
    """Returns the item side of a catalogue that is held in memory.

    Args:
        items: features/items.
        embeddings: item_id and embedding, in any order.
        config: of the ranker; its tables but `user` are named like columns of `items`.
        decoded: see `ItemFeatures`.

    Raises:
        ArtifactError: an item has no embedding, or the ranker knows other tokens.
    """
    rows = pa.Table.from_batches(token_rows(items.to_batches(), config)).combine_chunks()
    return ItemFeatures(aligned(items["item_id"], embeddings), rows, config, decoded)


def read_items(run: RunDir, config: RankerConfig) -> ItemFeatures:
    """Returns the item side of a run's catalogue, mapped: the processes of a node share one copy.

    Raises:
        ArtifactError: see `laid_out`.
    """
    uri, tables = run.uri("features", "items"), _item_tables(config)
    about = [*(f"{name}={table.model_dump_json()}" for name, table in tables.items()), *files.signature(uri)]
    schema, names = next(token_rows([], config)).schema, list(tables)
    batches = partial(files.batches, uri, names, BATCH_ROWS)
    rows = map_table(run, "token_rows", about, schema, lambda: token_rows(batches(), config))
    ids = map_columns(run, "features", "items", columns=["item_id"])["item_id"]
    decoded = read_decoded(run, ids) if config.decoded_dim else None
    return ItemFeatures(aligned(ids, read_embeddings(run)), rows, config, decoded)


def token_rows(items: Iterable[pa.RecordBatch], config: RankerConfig) -> Iterator[pa.RecordBatch]:
    """Yields what the items look up in each table of a ranker, and at the end what no item does.

    Args:
        items: features/items.
        config: of the ranker.

    Returns:
        NAME, list<int64>: rows of the table; where these have weights, NAME.weights, list<float>, see `looked_up`.

    Raises:
        ArtifactError: the ranker knows other tokens.
    """
    if config.hash not in ({}, HASH):
        raise ArtifactError("The ranker knows tokens of another hash function than the features have", "features")
    tables = _item_tables(config)
    no_item = pa.record_batch({name: [NULL_ID] if name == ITEM else [[NULL_ID]] for name in tables})
    for batch in chain(items, [no_item]):
        columns = dict[str, pa.Array]()
        for name, table in tables.items():
            single = name == ITEM  # one id per item
            ids = from_arrays(batch[name].to_numpy(), np.arange(len(batch) + 1)) if single else jagged_of(batch[name])
            found = looked_up(ids, table)
            columns[name] = list_column(found)
            if found.weights is not None:
                columns[f"{name}.weights"] = pa.ListArray.from_arrays(columns[name].offsets, found.weights.numpy())
        yield pa.record_batch(columns)


def _item_tables(config: RankerConfig) -> dict[str, Table]:
    return {name: table for name, table in config.tables.items() if name != USER}


def read_embeddings(run: RunDir) -> pa.Table:
    """Returns item_id and embedding of a run's items, mapped: the processes of a node share one copy."""
    return map_columns(run, "embeddings", columns=["item_id", "embedding"])


def read_decoded(run: RunDir, item_ids: pa.ChunkedArray) -> torch.Tensor:
    """Returns the vectors that items' semantic IDs decode to, float32 [N, D], mapped, not to be written to.

    Raises:
        ArtifactError: there is no quantizer, or an item has no semantic ID.
    """
    uri, artifact = run.uri("sids"), run.uri("models", "quantizer")
    quantizer = Quantizer.load(artifact)
    width = quantizer.architecture.input_dim
    schema = pa.schema([("item_id", pa.string()), ("vector", pa.list_(pa.float32(), width))])

    def made() -> Iterator[pa.RecordBatch]:
        for batch in files.batches(uri, ["item_id", "codes"], BATCH_ROWS):
            codes = torch.tensor(matrix_of(batch["codes"])[:, :-1])  # without the suffix
            vectors = matrix_column(quantizer.decode(codes).numpy())
            yield pa.record_batch([batch["item_id"], vectors], schema=schema)

    table = map_table(run, "decoded", [*files.signature(uri), str(model_digest(artifact))], schema, made)
    return shared(matrix_of(rows_of(item_ids, table, "sids")["vector"]))


def aligned(item_ids: pa.ChunkedArray, embeddings: pa.Table) -> torch.Tensor:
    """Returns the embeddings in the order of `item_ids`, float32 [N, D], not to be written to.

    A mapped table that is in this order (see `read_embeddings`) is not copied.

    Raises:
        ArtifactError: an item has none.
    """
    return shared(matrix_of(rows_of(item_ids, embeddings, "embeddings")["embedding"]))


def masked(source: Jagged, keep: torch.Tensor) -> Jagged:
    """Returns the lists with NULL in place of the tokens that are not kept; keep: boolean [T]."""
    count, weights = len(source.values) // max(len(keep), 1), source.weights
    each = keep.repeat_interleave(count)
    if weights is not None:
        weights = weights.where(each, (torch.arange(len(weights)) % count).float())
    return Jagged(source.values.where(each, NULL_ID), source.offsets, weights)


def of_levels(sids: Jagged, share: torch.Tensor, *, hashes: int = 1) -> torch.Tensor:
    """Tells which tokens belong to the first levels of semantic IDs, boolean [T].

    Args:
        sids: B lists of tokens as `sid_tokens` orders them, each of so many hashes.
        share: of the levels after the first one that stay, rounded down, float [B].
    """
    lengths, starts = sids.offsets.diff() // hashes, sids.offsets[:-1] // hashes
    place = torch.arange(len(sids.values) // hashes) - starts.repeat_interleave(lengths)
    last = (lengths // 2 * share).floor()  # level, from 0
    return (place + 1) // 2 <= last.repeat_interleave(lengths)


class Examples:
    """A table of examples (features/train, valid or test) as tensors, M rows."""

    def __init__(self, table: pa.Table, dense: Sequence[str]) -> None:
        self.user = torch.from_numpy(table["user"].to_numpy().astype(np.int64))
        self.rows = torch.from_numpy(table["row"].to_numpy().astype(np.int64))
        self.history = jagged_of(table["history"])
        self.long = jagged_of(table[LISTED]) if LISTED in table.column_names else None
        columns = [table[name].to_numpy().astype(np.float32) for name in dense]
        self.dense = torch.from_numpy(np.stack(columns, axis=1))
        self.label = torch.from_numpy(table["label"].to_numpy().astype(np.float32))

    def __len__(self) -> int:
        return len(self.rows)

    def batch(
        self, items: ItemFeatures, at: torch.Tensor, keep: Kept | None = None, total: float | None = None
    ) -> RankerInputs:
        """The input for the examples at positions int64 [B]; `keep` and `total` are those of `ItemFeatures.inputs`."""
        return items.inputs(
            user=self.user[at],
            history=gather(self.history, at),
            rows=self.rows[at],
            dense=self.dense[at],
            long=None if self.long is None else gather(self.long, at),
            label=self.label[at],
            keep=keep,
            total=total,
        )


def example_parts(uri: str, dense: Sequence[str], *, since: int | None = None) -> Parts[Examples]:
    """Returns the examples of a split (the folder features/train, valid or test) by partition, a file each.

    What was read last is kept: a split that is read whole each time is read once.

    Args:
        uri: of the folder.
        dense: names of the dense features.
        since: time of the first examples that count, microseconds; all where it is None.
    """
    uris = files.parts(uri)
    listed = [LISTED] if LISTED in files.dataset(uri).schema.names else []
    columns = ["user", "row", "history", "label", *listed, *dense]
    kept = None if since is None else pc.field("timestamp") >= pa.scalar(since, pa.timestamp("us", "UTC"))

    @functools.lru_cache(maxsize=1)
    def read(pieces: tuple[Piece, ...]) -> Examples:
        tables = [
            files.dataset(uris[part]).to_table(columns=columns, filter=kept).slice(low, high - low)
            for part, low, high in pieces
        ]
        return Examples(pa.concat_tables(tables), dense)

    return Parts([files.dataset(each).count_rows(filter=kept) for each in uris], read)


@torch.inference_mode()
def predict(ranker: Ranker, items: ItemFeatures, examples: Examples, *, batch_size: int = 4096) -> np.ndarray:
    """Probabilities of all examples, float64 [M]."""
    logits = [ranker(examples.batch(items, at))[0] for at in torch.arange(len(examples)).split(batch_size)]
    return torch.cat(logits).double().sigmoid().numpy()
