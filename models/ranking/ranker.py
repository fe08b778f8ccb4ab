"""The ranker: fields from embedding bags, content and dense features, an architecture; a logit for every pair."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from models.ranking.architectures import AUXILIARY_WEIGHT, build
from models.ranking.attention import TargetAttention
from models.ranking.bags import EmbeddingBags
from models.ranking.config import CONTENT, HISTORY, RankerConfig, Table, TableDtype
from models.ranking.quantized import QuantizedBags, float_bags, quantize_bags
from storage.artifacts import load_model, rebuilding, save_model


class Kept(NamedTuple):
    """What B rows of training tell; the rest is given as unknown.

    Attributes:
        user, item: the ids, boolean [B].
        levels: of the item's semantic ID the share of the levels after the first one, rounded down, float [B].
    """

    user: torch.Tensor
    item: torch.Tensor
    levels: torch.Tensor


@dataclass
class RankerInputs(Pipelineable):
    """A batch of B (user, item) pairs; what a ranker does not read is None."""

    sparse: KeyedJaggedTensor | None  # features of plain tables
    weighted: KeyedJaggedTensor | None  # features of hash embeddings and of bags pooled by attention
    dense: torch.Tensor  # float32 [B, n], raw; NaN where unknown
    label: torch.Tensor  # float32 [B]
    rows: torch.Tensor  # float32 [], pairs of the whole step over the number of workers: what the loss is divided by
    content: torch.Tensor | None = None  # float32 [B, D], the item's embedding
    history_content: torch.Tensor | None = None  # float32 [B, D], mean over the history, NaN where it is empty
    history_length: torch.Tensor | None = None  # int64 [B], items of the history
    long_length: torch.Tensor | None = None  # int64 [B], of the second one

    def to(self, device: torch.device, non_blocking: bool = False) -> RankerInputs:
        """Returns the batch on a device."""
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.Stream) -> None:
        """Tells the allocator which stream reads the batch."""
        self._each(lambda part: part.record_stream(stream))

    def pin_memory(self) -> RankerInputs:
        """Returns the batch in page-locked memory."""
        return self._each(lambda part: part.pin_memory())

    def _each(self, call: Callable[[Any], Any]) -> RankerInputs:
        parts = (getattr(self, field.name) for field in fields(self))
        return RankerInputs(*(None if part is None else call(part) for part in parts))


class Ranker(nn.Module):
    """Logits of (user, item) pairs.

    Fields are the pooled features of all tables and, where content is read, the item's embedding and the mean of the
    history's, in one learned projection. Embeddings are made on the meta device and get their values from
    `Trainer` or from `load_ranker`. The buffers hold training statistics: see `set_statistics`.

    Attributes:
        fields: their names, in order; those of content are `content` and `history_content`.
        precision: of the tower's inputs; the embeddings stay float32.
    """

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.config, self.precision = config, torch.float32
        dim = config.embedding_dim
        self.embeddings = _bags(with_positions(config), config)
        at = {feature: place for place, feature in enumerate(self.embeddings.features)}
        attended = config.histories if config.history else {}
        self._single = [place for feature, place in at.items() if "." not in feature]
        self._target = [at[name] for name in config.past]
        self._histories = [
            [[at[f"{kind}{name}.{place}"] for place in range(length)] for name in config.past]
            for kind, length in attended.items()
        ]
        self.attention = TargetAttention(len(config.past) * dim) if attended else None
        pasts = [kind + name for kind in attended for name in config.past]
        contents = [CONTENT, HISTORY + CONTENT] if config.content_dim else []
        self.fields = [*(feature for feature in at if "." not in feature), *pasts, *contents]
        self.content = nn.Linear(config.content_dim, dim) if config.content_dim else None
        self.dropout = nn.Dropout(config.dropout)
        self.tower = build(config.architecture, fields=len(self.fields), dim=dim, dense=len(config.dense))
        self.bias = nn.Parameter(torch.zeros(1))
        self.dense_mean = nn.Buffer(torch.zeros(len(config.dense)))
        self.dense_std = nn.Buffer(torch.ones(len(config.dense)))
        self.content_mean = nn.Buffer(torch.zeros(config.content_dim))
        self.content_std = nn.Buffer(torch.ones(config.content_dim))

    def set_statistics(self, *, dense: torch.Tensor, content: torch.Tensor | None = None, rate: float) -> None:
        """Freezes the standardisation of dense features and item embeddings, see `moments`, and the starting rate."""
        for name, values in (("dense", dense), ("content", content)):
            if values is not None:
                number, mean, squares = values
                getattr(self, f"{name}_mean").copy_(mean)
                getattr(self, f"{name}_std").copy_((squares / number.clamp_min(1)).sqrt().clamp_min(1e-4))
        with torch.no_grad():
            self.bias.fill_(torch.logit(torch.tensor(rate), eps=1e-4).item())

    def forward(self, inputs: RankerInputs) -> torch.Tensor:
        """Logits [1 + A, B]: the answer, then, while training, those of the architecture's A auxiliary heads.

        What is unknown counts as the training mean.
        """
        pooled = self.embeddings(inputs.sparse, inputs.weighted)
        parts = [pooled]
        if self.attention is not None:
            parts, target = [pooled[:, self._single]], pooled[:, self._target]
            for places, length in zip(self._histories, (inputs.history_length, inputs.long_length), strict=False):
                history = torch.stack([pooled[:, of_table] for of_table in places], dim=2)
                parts.append(self.attended(target, history, length))  # type: ignore[arg-type]
        if self.content is not None:
            parts.append(self.projected(torch.stack([inputs.content, inputs.history_content], dim=1)))  # type: ignore[list-item]
        return self.logits(torch.cat(parts, dim=1) if len(parts) > 1 else pooled, inputs.dense)

    def attended(self, target: torch.Tensor, history: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """Returns a history's fields [B, P, dim], its items weighed by what they have to do with the target.

        Args:
            target: the item's fields of the tables in `config.past`, float32 [B, P, dim].
            history: the same of the items of the past, [B, H, P, dim]; [1, H, P, dim] where all share one.
            length: how many of them there are, int64 [B] or [1].
        """
        known = torch.arange(history.shape[1], device=length.device) < length.unsqueeze(1)
        weights = self.attention(target.flatten(1), history.flatten(2), known)  # type: ignore[misc]
        return torch.einsum("bh,bhpd->bpd", weights, history)

    def projected(self, content: torch.Tensor) -> torch.Tensor:
        """Returns the fields [..., dim] of embeddings [..., D], NaN where unknown."""
        return self.content(((content - self.content_mean) / self.content_std).nan_to_num(0.0))  # type: ignore[misc]

    def logits(self, fields: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        """Returns what `forward` does.

        Args:
            fields: float32 [B, F, dim] in the order of `fields`.
            dense: float32 [B, n], raw; NaN where unknown.
        """
        dense = ((dense - self.dense_mean) / self.dense_std).nan_to_num(0.0).clamp(-8, 8)
        fields, dense = self.dropout(fields), self.dropout(dense)
        return self.tower(fields.to(self.precision), dense.to(self.precision)) + self.bias

    def bags(self, features: Container[str]) -> EmbeddingBags | QuantizedBags:
        """Returns the bags of some of the features alone, one at least, on the same weights."""
        kept = {
            name: table.model_copy(update={"features": tuple(each for each in table.features if each in features)})
            for name, table in with_positions(self.config).items()
        }
        made = _bags({name: table for name, table in kept.items() if table.features}, self.config)
        state = self.embeddings.state_dict()
        made.load_state_dict({name: state[name] for name in made.state_dict()}, assign=True)
        return made


def _bags(tables: dict[str, Table], config: RankerConfig) -> EmbeddingBags | QuantizedBags:
    dim, dtype = config.embedding_dim, config.table_dtype
    return EmbeddingBags(tables, dim) if dtype == "fp32" else QuantizedBags(tables, dim, dtype)


def moments(values: torch.Tensor) -> torch.Tensor:
    """Returns number, mean and sum of squared deviations of each column's finite values, float64 [3, n].

    Args:
        values: float [M, n].
    """
    known, values = values.isfinite(), values.double()  # squares of large numbers overflow float32
    number = known.sum(0)
    mean = values.where(known, 0.0).sum(0) / number.clamp_min(1)
    return torch.stack([number.double(), mean, ((values - mean).where(known, 0.0) ** 2).sum(0)])


def merged(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Returns the moments of the rows of both, float64 [3, n] (Chan, Golub and LeVeque 1983, doi 10.2307/2683386)."""
    number, step = one[0] + other[0], other[1] - one[1]
    share = other[0] / number.clamp_min(1)
    return torch.stack([number, one[1] + step * share, one[2] + other[2] + step**2 * one[0] * share])


def with_positions(config: RankerConfig) -> dict[str, Table]:
    """Returns the tables with a feature for each history, under attention one per position: `history_item.0` …."""
    tables = {}
    for name, table in config.tables.items():
        features = [feature for feature in table.features if feature != HISTORY + name]
        histories = config.histories if name in config.past else {}
        for kind, length in histories.items():
            positions = [f"{kind}{name}.{place}" for place in range(length)]
            features += positions if config.history else [kind + name]
        tables[name] = table.model_copy(update={"features": tuple(features)})
    return tables


class TrainingTask(nn.Module):
    """Binary cross-entropy of a ranker, in the form that TorchRec's train pipelines call."""

    def __init__(self, ranker: Ranker, precision: torch.dtype = torch.float32, device: str = "cpu") -> None:
        super().__init__()
        self.ranker, self.device = ranker, device
        self.ranker.precision = precision

    def forward(self, inputs: RankerInputs) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Returns the loss to minimise, auxiliary heads included; the log-loss alone, and the logit of every row [B].

        Both losses are the worker's shares: their mean over the workers is that of the whole step.
        """
        precision = self.ranker.precision
        with torch.autocast(self.device, precision, enabled=precision != torch.float32):
            logits = self.ranker(inputs)
        logits = logits.float()
        losses = nn.functional.binary_cross_entropy_with_logits(
            logits, inputs.label.expand_as(logits), reduction="none"
        ).sum(1)
        losses = losses / inputs.rows
        return losses[0] + AUXILIARY_WEIGHT * losses[1:].sum(), (losses[0].detach(), logits[0].detach())


def save_ranker(
    uri: str, config: RankerConfig, tensors: dict[str, torch.Tensor], *, table_dtype: TableDtype = "fp32"
) -> None:
    """Writes a ranker's artifact.

    Args:
        uri: a folder.
        config: of the ranker that was trained.
        tensors: its whole tables and the rest, as `Trainer.gather` returns them.
        table_dtype: of the tables as they are kept.
    """
    if table_dtype != "fp32":
        ranker = Ranker(config)
        ranker.load_state_dict(tensors, assign=True)
        ranker.embeddings = quantize_bags(ranker.embeddings, table_dtype)  # type: ignore[arg-type]
        config, tensors = config.model_copy(update={"table_dtype": table_dtype}), ranker.state_dict()
    save_model(uri, "ranker", config.model_dump(mode="json"), tensors)


def load_weights(uri: str, config: RankerConfig) -> dict[str, torch.Tensor] | None:
    """Returns the state dict of an artifact, tables as fp32, for a ranker of this config; None where it is of another.

    Raises:
        ArtifactError: there is none at `uri`, or it is damaged.
    """
    ranker = load_ranker(uri)
    asked = config.model_copy(update={"table_dtype": ranker.config.table_dtype, "dropout": ranker.config.dropout})
    if ranker.config != asked:
        return None
    if isinstance(ranker.embeddings, QuantizedBags):
        ranker.embeddings = float_bags(ranker.embeddings, with_positions(config), config.embedding_dim)
    return ranker.state_dict()


def load_ranker(uri: str) -> Ranker:
    """A ranker as one plain module on the CPU, in evaluation mode; needs no process group.

    Raises:
        ArtifactError: there is none at `uri`, or it is damaged.
    """
    config, tensors = load_model(uri, "ranker")
    with rebuilding(uri, "ranker"):
        ranker = Ranker(RankerConfig.model_validate(config))
        ranker.load_state_dict(tensors, assign=True)
    return ranker.eval()
