"""The peers of `benchmarks.ranker`: DCNv2 in plain PyTorch, tuned by hand, in torch-rechub and in DeepCTR-Torch.

Every `fit_*` takes the training rows, the test rows and `Settings`, trains for one epoch, and returns its seconds and
the scores of the test rows. The seconds are those of the training loop with its input; the conversion of tables to the
arrays that a library requires is not counted.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.nn import functional

from benchmarks.ranker_data import TOKENS


@dataclass(frozen=True)
class Settings:
    """Settings that all variants share, and the learning rates of one.

    Attributes:
        vocabularies: rows of the tables of single ids.
        bags: rows of the tables of token lists.
        dense: names of the dense columns.
        embedding_lr: learning rate of the tables, if they have a separate optimiser.
        dense_lr: learning rate of everything else.
        precision: `fp32`, or `bf16` for the layers above the embeddings (autocast).
        steps: number of timed steps after `warm_up` untimed ones; None is one epoch.
    """

    vocabularies: dict[str, int]
    bags: dict[str, int]
    dense: tuple[str, ...]
    embedding_lr: float
    dense_lr: float
    precision: str = "fp32"
    embedding_dim: int = 16
    cross_layers: int = 3
    hidden: tuple[int, ...] = (256, 128)
    batch_size: int = 4096
    seed: int = 0
    steps: int | None = None
    warm_up: int = 0


class Fit(NamedTuple):
    """A finished training: its seconds, its number of rows, and logits or probabilities of the test rows."""

    seconds: float
    rows: int
    scores: np.ndarray


class Stopwatch:
    """Counts the seconds of the timed steps: call `tick` after every step, `stop` after the last."""

    def __init__(self, settings: Settings) -> None:
        self._warm_up, self._steps = settings.warm_up, 0
        self._start = time.perf_counter()

    def tick(self) -> None:
        """Counts a step; restarts the clock after the last warm-up step."""
        self._steps += 1
        if self._steps == self._warm_up:
            self._start = time.perf_counter()

    def seconds(self) -> float:
        """Returns the seconds since the warm-up."""
        return time.perf_counter() - self._start


def fit_plain(
    train: pa.Table, test: pa.Table, settings: Settings, *, one_table: bool = True, sparse: bool = True
) -> Fit:
    """Trains plain PyTorch, tuned by hand: Adagrad on the tables' gradients, fused AdamW on the rest, no DataLoader.

    Args:
        one_table: put all vocabularies into one table, looked up at once, instead of one table per vocabulary.
        sparse: compute gradients only for the rows of a batch, not for all rows, which is nn.EmbeddingBag's default.
    """
    torch.sparse.check_sparse_tensor_invariants.disable()
    torch.manual_seed(settings.seed)
    model = PlainDcnv2(settings, one_table=one_table, sparse=sparse)
    tables = list(model.tables.parameters())
    rest = [parameter for name, parameter in model.named_parameters() if not name.startswith("tables.")]
    optimizers = [
        torch.optim.Adagrad(tables, lr=settings.embedding_lr, eps=1e-6, foreach=None if sparse else True),
        torch.optim.AdamW(rest, lr=settings.dense_lr, weight_decay=0.0, fused=True),
    ]
    data, unseen = PlainData(train, settings), PlainData(test, settings)
    watch = Stopwatch(settings)
    rows = 0
    for at in batches(len(train), settings):
        ids, bags, dense, label = data.batch(at)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(model(ids, bags, dense), label)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        watch.tick()
        rows += len(at)
    seconds = watch.seconds()
    with torch.inference_mode():
        parts = torch.arange(len(test)).split(settings.batch_size)
        scores = torch.cat([model(*unseen.batch(at)[:3]) for at in parts])
    return Fit(seconds, rows - settings.warm_up * settings.batch_size, scores.float().numpy())


class PlainData:
    """Rows as tensors: ids int64 [N, C], values and offsets of every bag, dense float32 [N, n], label float32 [N]."""

    def __init__(self, rows: pa.Table, settings: Settings) -> None:
        self.ids = torch.from_numpy(_matrix(rows, settings.vocabularies, np.int64))
        self.bags = [_lists(rows, name) for name in settings.bags]
        self.dense = torch.from_numpy(_matrix(rows, settings.dense, np.float32))
        self.label = torch.tensor(rows["label"].to_numpy())

    def batch(self, at: torch.Tensor) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]], Any, Any]:
        """Returns the rows at positions int64 [B]; a bag is (values [T], its rows' first positions [B])."""
        bags = []
        for values, offsets in self.bags:
            first = offsets[at]
            lengths = offsets[at + 1] - first
            starts = lengths.cumsum(0) - lengths
            places = torch.repeat_interleave(first - starts, lengths) + torch.arange(int(lengths.sum()))
            bags.append((values[places], starts))
        return self.ids.index_select(0, at), bags, self.dense.index_select(0, at), self.label.index_select(0, at)


class PlainDcnv2(nn.Module):
    """DCN-V2 over mean-pooled embeddings, cross network beside the perceptron."""

    firsts: torch.Tensor  # int64, the first row of every vocabulary in its table

    def __init__(self, settings: Settings, *, one_table: bool, sparse: bool) -> None:
        super().__init__()
        sizes = [*settings.vocabularies.values(), *settings.bags.values()]
        firsts = torch.tensor([0, *sizes[:-1]]).cumsum(0) if one_table else torch.zeros(len(sizes), dtype=torch.int64)
        self.register_buffer("firsts", firsts)
        self.one_table, self.precision = one_table, settings.precision
        tables = [sum(sizes)] if one_table else sizes
        self.tables = nn.ModuleList()
        for rows in tables:
            table = nn.EmbeddingBag(rows, settings.embedding_dim, mode="mean", sparse=sparse)
            nn.init.normal_(table.weight, std=0.05)
            self.tables.append(table)
        width = len(sizes) * settings.embedding_dim + len(settings.dense)
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(settings.cross_layers))
        layers: list[nn.Module] = []
        before = width
        for hidden in settings.hidden:
            layers += [nn.Linear(before, hidden), nn.ReLU()]
            before = hidden
        self.deep = nn.Sequential(*layers)
        self.head = nn.Linear(width + before, 1)

    def forward(
        self, ids: torch.Tensor, bags: list[tuple[torch.Tensor, torch.Tensor]], dense: torch.Tensor
    ) -> torch.Tensor:
        """Returns logits, float32 [B]."""
        x0 = torch.cat([*(self._of_one_table(ids, bags) if self.one_table else self._of_tables(ids, bags)), dense], 1)
        mixed = self.precision == "bf16"
        if mixed:
            x0 = x0.bfloat16()  # once, instead of in every layer
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            x = x0
            for layer in self.cross:
                x = torch.addcmul(x, x0, layer(x))
            return self.head(torch.cat([x, self.deep(x0)], dim=1)).squeeze(1).float()

    def _of_tables(self, ids: torch.Tensor, bags: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
        columns = [(column, torch.arange(len(ids))) for column in ids.T.contiguous()] + bags
        return [table(*bag) for table, bag in zip(self.tables, columns, strict=True)]

    def _of_one_table(self, ids: torch.Tensor, bags: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
        rows, singles = ids.shape
        table: Any = self.tables[0]
        found = functional.embedding(ids + self.firsts[:singles], table.weight, sparse=table.sparse).flatten(1)
        ends = torch.tensor([0, *(len(values) for values, _ in bags)]).cumsum(0).tolist()
        values = torch.cat([bag[0] + first for bag, first in zip(bags, self.firsts[singles:].tolist(), strict=True)])
        pooled = table(values, torch.cat([bag[1] + end for bag, end in zip(bags, ends, strict=False)]))
        return [found, *pooled.view(len(bags), rows, -1).unbind()]


def fit_torch_rechub(train: pa.Table, test: pa.Table, settings: Settings) -> Fit:
    """Trains torch-rechub as in its examples: `DataGenerator`, `DCNv2` with full-rank crosses, `CTRTrainer`."""
    from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
    from torch_rechub.models.ranking import DCNv2
    from torch_rechub.trainers import CTRTrainer
    from torch_rechub.utils.data import DataGenerator

    torch.manual_seed(settings.seed)
    dim = settings.embedding_dim
    features: list[Any] = [DenseFeature(name) for name in settings.dense]
    features += [SparseFeature(name, rows, embed_dim=dim) for name, rows in settings.vocabularies.items()]
    features += [
        SequenceFeature(name, rows, embed_dim=dim, pooling="mean", padding_idx=0)
        for name, rows in settings.bags.items()
    ]
    model = DCNv2(
        features,
        n_cross_layers=settings.cross_layers,
        mlp_params={"dims": list(settings.hidden), "dropout": 0.0, "activation": "relu"},
        use_low_rank_mixture=False,
    )
    x, unseen = _columns(train, settings), _columns(test, settings)
    labels = train["label"].to_numpy(), test["label"].to_numpy()
    with tempfile.TemporaryDirectory() as folder, silence():
        trainer = CTRTrainer(
            model, optimizer_params={"lr": settings.dense_lr, "weight_decay": 1e-5}, n_epoch=1, model_path=folder
        )
        loader, _, unseen_loader = DataGenerator(x, labels[0]).generate_dataloader(
            x_val=unseen, y_val=labels[1], x_test=unseen, y_test=labels[1], batch_size=settings.batch_size
        )
        start = time.perf_counter()
        trainer.fit(loader)
        seconds = time.perf_counter() - start
        scores = np.asarray(trainer.predict(model, unseen_loader), np.float32)
    return Fit(seconds, len(train), scores)


def fit_deepctr_torch(train: pa.Table, test: pa.Table, settings: Settings) -> Fit:
    """Trains DeepCTR-Torch as in its examples: `DCN` with matrix crosses (DCN-V2's), `compile`, `fit`.

    Its loss is a sum over the batch, to which Adam is invariant. It computes no metrics, which saves it time.
    """
    from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat
    from deepctr_torch.models import DCN

    dim = settings.embedding_dim
    columns: list[Any] = [SparseFeat(name, rows, embedding_dim=dim) for name, rows in settings.vocabularies.items()]
    columns += [
        VarLenSparseFeat(SparseFeat(name, rows, embedding_dim=dim), maxlen=TOKENS[1], combiner="mean")
        for name, rows in settings.bags.items()
    ]
    columns += [DenseFeat(name) for name in settings.dense]
    model = DCN(
        columns,
        columns,
        cross_num=settings.cross_layers,
        cross_parameterization="matrix",
        dnn_hidden_units=settings.hidden,
        seed=settings.seed,
    )
    model.compile(torch.optim.Adam(model.parameters(), lr=settings.dense_lr), "binary_crossentropy")
    x, unseen = _columns(train, settings), _columns(test, settings)
    with silence():
        start = time.perf_counter()
        model.fit(x, train["label"].to_numpy(), batch_size=settings.batch_size, epochs=1, verbose=2)
        seconds = time.perf_counter() - start
        scores = model.predict(unseen, settings.batch_size)
    return Fit(seconds, len(train), scores.reshape(-1).astype(np.float32))


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Suppresses a library's progress bars and remarks."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def batches(rows: int, settings: Settings) -> Iterator[torch.Tensor]:
    """Yields shuffled row numbers of one epoch, or of as many steps as set."""
    batches = torch.randperm(rows).split(settings.batch_size)
    yield from batches if settings.steps is None else batches[: settings.warm_up + settings.steps]


def _matrix(rows: pa.Table, names: Any, kind: Any) -> np.ndarray:
    """Stacks columns into a matrix, [N, len(names)]."""
    return np.stack([rows[name].to_numpy().astype(kind) for name in names], axis=1)


def _lists(rows: pa.Table, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns values and offsets of a list column, int64."""
    column = rows[name].combine_chunks()
    offsets = column.offsets.to_numpy().astype(np.int64)
    values = column.values.to_numpy()[offsets[0] : offsets[-1]].astype(np.int64)
    return torch.from_numpy(values), torch.from_numpy(offsets - offsets[0])


def _columns(rows: pa.Table, settings: Settings) -> dict[str, np.ndarray]:
    """Returns the input of both libraries: an array per column, bags padded with zeros to the longest, [N, 18]."""
    columns = {name: rows[name].to_numpy() for name in (*settings.vocabularies, *settings.dense)}
    for name in settings.bags:
        values, offsets = (tensor.numpy() for tensor in _lists(rows, name))
        padded = np.zeros((len(rows), TOKENS[1]), np.int32)
        padded[np.arange(TOKENS[1]) < np.diff(offsets)[:, None]] = values
        columns[name] = padded
    return columns
