"""Embedding bags: plain tables, hash embeddings, and pooling by attention, in TorchRec's collections.

A hash embedding (Svenstrup et al. 2017, arXiv 1709.03933) of token t is

    e(t) = sum_j P[D(t), j] E[u_j(t)]

over k rows u_j(t) of a shared table E, weighed by importances P. A bag is pooled by the sum or the mean of its tokens,
or by a mean weighed with the softmax of learned logits A[D(t)] over the bag. In a KeyedJaggedTensor a token is k values
one after the other, its rows u_j(t), and their weights say where to find P[D(t), j]: see `places`.

What a bag's sum is divided by is computed apart from it, by the worker whose batch it is: where tables are sharded by
row, no worker looks up a whole bag.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.init import zeros_
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.feature_processor_ import FeatureProcessorsCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from models.ranking.config import Table

BOUND = 20.0  # of attention's logits: exp can neither overflow nor vanish, so the softmax needs no maximum of the bag


def places(rows: torch.Tensor, hashes: int) -> torch.Tensor:
    """Returns what the k values of each token carry as weights: D(t) k + j, the place of P[D(t), j] in P.

    Args:
        rows: D(t), int64 [T]: rows of P, or of the table where there is no P.

    Returns:
        float32 [T k].
    """
    return (rows.unsqueeze(1) * hashes + torch.arange(hashes, device=rows.device)).flatten().float()


class TokenWeights(FeatureProcessorsCollection):
    """From places to weights, P[D(t), j] exp(A[D(t)]), and what the sums of bags are to be divided by.

    P starts at 1: an untrained hash embedding is the sum of its rows, and all of them learn from the first step on. A
    starts at 0, the mean.
    """

    def __init__(self, tables: dict[str, Table]) -> None:
        super().__init__()
        self._tables = {feature: (name, table) for name, table in tables.items() for feature in table.features}
        self.importance, self.attention = nn.ParameterDict(), nn.ParameterDict()
        for name, table in tables.items():
            if table.importance:
                self.importance[name] = nn.Parameter(torch.ones(table.importance, table.hashes))
            if table.pooling == "attention":
                self.attention[name] = nn.Parameter(torch.zeros(table.importance or table.rows))

    def forward(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Returns the same bags with weights for places; of some of the tables, in any order, or of some rows alone."""
        if not features.keys():  # a worker that has none of the tables
            return features
        at = features.weights().long().split(features.length_per_key())
        return KeyedJaggedTensor(
            keys=features.keys(),
            values=features.values(),
            weights=torch.cat(
                [self._weights(feature, places) for feature, places in zip(features.keys(), at, strict=True)]
            ),
            lengths=features.lengths(),
            offsets=features.offsets(),
            stride=features.stride(),
            length_per_key=features.length_per_key(),
        )

    def divisors(self, features: KeyedJaggedTensor) -> dict[str, torch.Tensor]:
        """Of each bag the sum of exp(A[D(t)]) over its tokens, or their number for a mean: float32 [B] per feature."""
        keys = features.keys()
        at = features.weights().long().split(features.length_per_key())
        lengths = features.lengths().view(len(keys), -1).long()
        found = {}
        for feature, places, length in zip(keys, at, lengths, strict=True):
            name, table = self._tables[feature]
            tokens = length // table.hashes
            if table.pooling == "mean":
                found[feature] = tokens.clamp_min(1).float()
            elif table.pooling == "attention":
                shares = self._shares(name, places[:: table.hashes] // table.hashes)
                found[feature] = torch.segment_reduce(shares, "sum", lengths=tokens).where(tokens > 0, 1.0)
        return found

    def _weights(self, feature: str, places: torch.Tensor) -> torch.Tensor:
        name, table = self._tables[feature]
        if not table.importance:
            return self._shares(name, places)
        importance = self.importance[name].flatten().index_select(0, places).float()
        if table.pooling != "attention":
            return importance
        return importance * self._shares(name, places // table.hashes)

    def _shares(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        return self.attention[name].index_select(0, rows).float().clamp(-BOUND, BOUND).exp()


class EmbeddingBags(nn.Module):
    """The pooled embeddings of all features.

    Embeddings are made on the meta device; `sharding.draw_tables`, or what loads them, gives them values.

    Attributes:
        features: in the order of the tables, then of their features.
    """

    def __init__(self, tables: dict[str, Table], dim: int) -> None:
        super().__init__()
        weighted = {name: table for name, table in tables.items() if table.weighted}
        plain = {name: table for name, table in tables.items() if not table.weighted}
        self.tables, self.dim = tables, dim
        self.features = tuple(feature for table in tables.values() for feature in table.features)
        means = (table for table in plain.values() if table.pooling == "mean")
        self._means = tuple(feature for table in means for feature in table.features)
        self.plain = _collection(plain, dim) if plain else None
        self.weighted = (
            FeatureProcessedEmbeddingBagCollection(_collection(weighted, dim), TokenWeights(weighted))
            if weighted
            else None
        )

    def forward(self, sparse: KeyedJaggedTensor | None, weighted: KeyedJaggedTensor | None) -> torch.Tensor:
        """Embeddings float32 [B, F, dim] in the order of `features`; a bag without values is zeros.

        Args:
            sparse: features of the tables without learned weights; None where there is no such table.
            weighted: features of the others, weights as of `places`.
        """
        both = ((self.plain, sparse), (self.weighted, weighted))
        pooled = [part(bags) for part, bags in both if part is not None]  # exchanged before either is waited for
        weights = None if self.weighted is None else self.weighted._feature_processors
        return _fields(self.features, self._means, pooled, sparse, weighted, weights)


# a step of its own for TorchRec's pipelines, which trace the model to find what is sharded
@torch.fx.wrap
def _fields(
    features: tuple[str, ...],
    means: tuple[str, ...],
    pooled: list[KeyedTensor],
    sparse: KeyedJaggedTensor | None,
    weighted: KeyedJaggedTensor | None,
    weights: TokenWeights | None,
) -> torch.Tensor:
    if len(pooled) == 1 and tuple(pooled[0].keys()) == features:
        fields = pooled[0].values().unflatten(1, (len(features), -1))  # as they lie, without a copy
    else:
        columns = {feature: column for tensor in pooled for feature, column in tensor.to_dict().items()}
        fields = torch.stack([columns[feature] for feature in features], dim=1)
    divisors = {}
    if sparse is not None:
        sizes = sparse.lengths().view(len(sparse.keys()), -1).clamp_min(1).float()
        divisors = {feature: sizes[sparse.keys().index(feature)] for feature in means}
    if weights is not None and weighted is not None:
        divisors |= weights.divisors(weighted)
    if not divisors:
        return fields
    ones = fields.new_ones(len(fields))
    return fields / torch.stack([divisors.get(feature, ones) for feature in features], dim=1).unsqueeze(2)


def _collection(tables: dict[str, Table], dim: int) -> EmbeddingBagCollection:
    weighted = any(table.weighted for table in tables.values())
    return EmbeddingBagCollection(
        device=torch.device("meta"),
        is_weighted=weighted,
        tables=[
            EmbeddingBagConfig(
                name=name,
                embedding_dim=dim,
                num_embeddings=table.rows,
                feature_names=list(table.features),
                pooling=PoolingType.SUM,  # fbgemm's means take five times as long on CPUs
                init_fn=zeros_,
            )
            for name, table in tables.items()
        ],
    )
