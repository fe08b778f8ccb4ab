"""A small module with both kinds of embedding bags, and batches for it, for tests of sharding and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from zlib import crc32

import torch
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.optim.keyed import CombinedOptimizer
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from models.ranking.config import Sharding
from models.ranking.sharding import gather_state, shard

ROWS = {"user": 11, "item": 30, "caption": 23}
PLAIN, WEIGHTED = ("user", "item", "history"), ("caption",)
LONGEST = 6
RATES = {"embedding_lr": 0.1, "dense_lr": 0.02, "weight_decay": 0.1}


@dataclass
class Batch(Pipelineable):
    sparse: KeyedJaggedTensor
    weighted: KeyedJaggedTensor
    label: torch.Tensor
    rows: torch.Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        return Batch(*(getattr(self, f.name).to(device) for f in fields(self)))

    def record_stream(self, stream: torch.Stream) -> None:
        raise NotImplementedError

    def pin_memory(self) -> Batch:
        raise NotImplementedError


class Module(nn.Module):
    """Mean log-loss of clicks from two plain tables, one table weighed by position, a norm and two linear layers."""

    def __init__(self, rows: dict[str, int] = ROWS, dim: int = 8, hidden: int = 5, scaled: bool = True) -> None:
        super().__init__()

        def bags(features: dict[str, tuple[str, ...]], pooling: PoolingType, weighted: bool) -> EmbeddingBagCollection:
            return EmbeddingBagCollection(
                device=torch.device("meta"),
                is_weighted=weighted,
                tables=[
                    EmbeddingBagConfig(
                        name=name,
                        embedding_dim=dim,
                        num_embeddings=rows[name],
                        feature_names=list(names),
                        pooling=pooling,
                    )
                    for name, names in features.items()
                ],
            )

        self.plain = bags({"user": ("user",), "item": ("item", "history")}, PoolingType.MEAN, weighted=False)
        self.weighted = FeatureProcessedEmbeddingBagCollection(
            bags({"caption": ("caption",)}, PoolingType.SUM, weighted=True),
            PositionWeightedModuleCollection({"caption": LONGEST}),
        )
        self.norm = nn.LayerNorm(dim * 4)
        self.hidden = nn.Linear(dim * 4, hidden)
        self.head = nn.Linear(hidden, 1)
        self.scale = nn.Parameter(torch.ones(1)) if scaled else 1

    def forward(self, batch: Batch) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        pooled = torch.cat([self.plain(batch.sparse).values(), self.weighted(batch.weighted).values()], dim=1)
        logits = self.scale * self.head(torch.tanh(self.hidden(self.norm(pooled)))).squeeze(1)
        losses = nn.functional.binary_cross_entropy_with_logits(logits, batch.label, reduction="none")
        loss = losses.sum() / batch.rows
        return loss, (loss.detach(), logits.detach())


def batches(steps: int, seed: int = 0, *, share: slice = slice(None), workers: int = 1) -> Iterator[Batch]:
    """Batches of eight rows each, or a worker's share of them."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        lengths = torch.randint(0, LONGEST + 1, (len(PLAIN + WEIGHTED), 8), generator=random)
        lengths[0] = 1
        draws = torch.rand(*lengths.shape, LONGEST, generator=random)
        label = (torch.rand(8, generator=random) < 0.4).float()
        known = torch.arange(LONGEST) < lengths.unsqueeze(2)

        def jagged(features: tuple[str, ...], first: int) -> KeyedJaggedTensor:
            at = range(first, first + len(features))
            sizes = [ROWS["item" if name == "history" else name] for name in features]
            values = [(draws[a, share] * size).long()[known[a, share]] for a, size in zip(at, sizes, strict=True)]  # noqa: B023
            return KeyedJaggedTensor(
                keys=list(features),
                values=torch.cat(values),
                lengths=torch.cat([lengths[a, share] for a in at]).int(),  # noqa: B023
            )

        yield Batch(
            sparse=jagged(PLAIN, 0),
            weighted=jagged(WEIGHTED, len(PLAIN)),
            label=label[share],
            rows=torch.tensor(8 / workers),
        )


def start(name: str, size: torch.Size) -> torch.Tensor:
    """First values of a parameter, by its name alone."""
    return 0.3 * torch.randn(size, generator=torch.Generator().manual_seed(crc32(name.encode())))


def spread(module: Module, sharding: Sharding = "table_wise") -> tuple[DistributedModelParallel, CombinedOptimizer]:
    """The module, sharded, with the first values of `start`."""
    model, optimizer = shard(module, device=torch.device("cpu"), **RATES, sharding=sharding)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            whole = start(name, value.size())
            if not isinstance(value, ShardedTensor):
                value.copy_(whole)
                continue
            for part in value.local_shards():
                spans = zip(part.metadata.shard_offsets, part.metadata.shard_sizes, strict=True)
                part.tensor.copy_(whole[tuple(slice(at, at + size) for at, size in spans)])
    return model, optimizer


def train(model: DistributedModelParallel, optimizer: CombinedOptimizer, data: Iterator[Batch]) -> list[float]:
    """This worker's shares of each step's loss."""
    losses = []
    for batch in data:
        optimizer.zero_grad()
        loss, _ = model(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def state(model: DistributedModelParallel) -> dict[str, torch.Tensor]:
    """Whole weights on the first worker, an empty dict elsewhere."""
    return gather_state(model, prefix="") or {}
