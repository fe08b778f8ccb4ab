"""The ranker: embedding bags of TorchRec under a DCN-V2, one probability per (user, item) pair.

Fields are the rows of EmbeddingBagCollection, mean-pooled. Every user-side field meets every item-side field in a dot
product (the interaction of DLRM, Naumov et al. 2019, arXiv 1906.00091); fields, dots and dense features then pass
low-rank cross layers beside an MLP (DCN-V2, Wang et al. 2021, arXiv 2008.13535).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import partial

import torch
from torch import nn
from torch.nn.init import normal_
from torchrec.modules.crossnet import LowRankCrossNet
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mlp import MLP
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from storage.weights import load_model, save_model

TABLES = {
    "user": ("user",),
    "item": ("item", "history_item"),
    "caption": ("caption", "history_caption"),
    "text": ("text", "history_text"),
    "sid": ("sid", "history_sid"),
}
USER_FIELDS = ("user", "history_item", "history_caption", "history_text", "history_sid")
ITEM_FIELDS = ("item", "caption", "text", "sid")
FIELDS = USER_FIELDS + ITEM_FIELDS


@dataclass
class RankerInputs(Pipelineable):
    """A batch of B (user, item) pairs; `operators.features.ranker_inputs` makes it."""

    sparse: KeyedJaggedTensor  # the features FIELDS
    dense: torch.Tensor  # float32 [B, n], raw; NaN where unknown
    content: torch.Tensor  # float32 [B, D], the item's embedding
    history_content: torch.Tensor  # float32 [B, D], mean over the history, NaN where it is empty
    label: torch.Tensor  # float32 [B]

    def to(self, device: torch.device, non_blocking: bool = False) -> RankerInputs:
        """The batch on a device."""
        return RankerInputs(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the allocator which stream reads the batch."""
        for f in fields(self):
            getattr(self, f.name).record_stream(stream)

    def pin_memory(self) -> RankerInputs:
        """The batch in page-locked memory."""
        return RankerInputs(*(getattr(self, f.name).pin_memory() for f in fields(self)))


@dataclass(frozen=True)
class RankerConfig:
    """What rebuilds the module."""

    rows: dict[str, int]  # per table of TABLES
    dense: tuple[str, ...]  # names of the dense features, in order
    content_dim: int
    embedding_dim: int = 16
    cross_layers: int = 2
    cross_rank: int = 32
    hidden: tuple[int, ...] = (64, 32)
    dropout: float = 0.0


class Ranker(nn.Module):
    """Logits of (user, item) pairs.

    Embeddings are made on the meta device and get their values from DistributedModelParallel or from `load_ranker`.
    The buffers hold training statistics: see `set_statistics`.
    """

    dense_mean: torch.Tensor
    dense_std: torch.Tensor
    content_mean: torch.Tensor
    content_std: torch.Tensor

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embedding_dim
        self.embeddings = EmbeddingBagCollection(
            device=torch.device("meta"),
            tables=[
                EmbeddingBagConfig(
                    name=table,
                    embedding_dim=dim,
                    num_embeddings=config.rows[table],
                    feature_names=list(features),
                    pooling=PoolingType.MEAN,
                    init_fn=partial(normal_, std=0.05),
                )
                for table, features in TABLES.items()
            ],
        )
        self.content = nn.Linear(config.content_dim, dim)
        dots = (len(USER_FIELDS) + 1) * (len(ITEM_FIELDS) + 1)
        width = (len(FIELDS) + 2) * dim + dots + len(config.dense)
        self.cross = LowRankCrossNet(width, config.cross_layers, config.cross_rank)
        self.deep = MLP(width, list(config.hidden))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(width + config.hidden[-1], 1)
        for name, size in (("dense", len(config.dense)), ("content", config.content_dim)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))

    def set_statistics(self, dense: torch.Tensor, content: torch.Tensor, rate: float) -> None:
        """Freeze the standardisation of dense features [M, n] and item embeddings [N, D], and the starting rate."""
        for name, values in (("dense", dense), ("content", content)):
            known = ~values.isnan()
            number = known.sum(0).clamp_min(1)
            mean = values.nan_to_num().sum(0) / number
            variance = ((values - mean).nan_to_num() ** 2).sum(0) / number
            getattr(self, f"{name}_mean").copy_(mean)
            getattr(self, f"{name}_std").copy_(variance.sqrt().clamp_min(1e-4))
        with torch.no_grad():
            self.head.bias.fill_(torch.logit(torch.tensor(rate), eps=1e-4).item())

    def forward(self, inputs: RankerInputs) -> torch.Tensor:
        """Logits [B]; what is unknown counts as the training mean."""
        pooled = self.embeddings(inputs.sparse)
        dense = ((inputs.dense - self.dense_mean) / self.dense_std).nan_to_num(0.0).clamp(-8, 8)
        content = self.content(((inputs.content - self.content_mean) / self.content_std).nan_to_num(0.0))
        taste = self.content(((inputs.history_content - self.content_mean) / self.content_std).nan_to_num(0.0))
        users = torch.stack([pooled[field] for field in USER_FIELDS] + [taste], dim=1)
        items = torch.stack([pooled[field] for field in ITEM_FIELDS] + [content], dim=1)
        dots = torch.bmm(users, items.transpose(1, 2))
        x = self.dropout(torch.cat([users.flatten(1), items.flatten(1), dots.flatten(1), dense], dim=1))
        return self.head(torch.cat([self.cross(x), self.deep(x)], dim=1)).squeeze(1)


class TrainingTask(nn.Module):
    """Binary cross-entropy of a ranker, in the form that TorchRec's train pipelines call."""

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, inputs: RankerInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean loss, and the loss of every row [B] without gradient."""
        losses = nn.functional.binary_cross_entropy_with_logits(self.ranker(inputs), inputs.label, reduction="none")
        return losses.mean(), losses.detach()


def save_ranker(uri: str, config: RankerConfig, tensors: dict[str, torch.Tensor]) -> None:
    """Write a ranker's artifact: whole tables, as `models.sharding.gather_state` returns them."""
    save_model(uri, "ranker", asdict(config), tensors)


def load_ranker(uri: str) -> Ranker:
    """A ranker as one plain module on the CPU, in evaluation mode; needs no process group.

    Raises:
        UserError: there is none at `uri`, or it is damaged.
    """
    config, tensors = load_model(uri, "ranker")
    for name in ("dense", "hidden"):
        config[name] = tuple(config[name])
    ranker = Ranker(RankerConfig(**config))
    ranker.load_state_dict(tensors, assign=True)
    return ranker.eval()
