"""A causal transformer over the items of a history."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from models.common.dropout import dropout
from models.recommenders.sprint import AttentionPenalty, ProductPenalty, SprintConfig, causal_attention


class Encoder(nn.Module):
    """Pre-norm transformer blocks with learned positions, as in GPT-2; those of SASRec are post-norm.

    Sequences are aligned left and padded right, so that the causal mask alone keeps padding out.
    """

    def __init__(
        self,
        *,
        dim: int,
        layers: int,
        heads: int,
        inner: int,
        share: float,
        block_share: float,
        length: int,
        sprint: SprintConfig,
    ) -> None:
        """Takes sizes, what is dropped (of vectors and attention, and of what blocks add), and what is penalised."""
        super().__init__()
        self.length = length
        self.position = nn.Embedding(length, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, inner, share, block_share, sprint) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.share = share
        nn.init.normal_(self.position.weight, std=0.02)

    def forward(self, items: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what each position knows of the items up to it.

        Args:
            items: vectors [B, T, D], T at most `length`.
            real: bool [B, T], False for padding.

        Returns:
            [B, T, D], and the penalty of the blocks, [], which is 0 outside of training.
        """
        penalty = items.new_zeros(())
        hidden = dropout(items + self.position.weight[: items.shape[1]], self.share, training=self.training)
        for block in self.blocks:
            hidden, more = block(hidden, real)
            penalty = penalty + more / len(self.blocks)
        return self.norm(hidden), penalty


class Block(nn.Module):
    """Attention and a two-layer network, each added to what came in."""

    def __init__(
        self, dim: int, heads: int, inner: int, share: float, block_share: float, sprint: SprintConfig
    ) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.network_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.project = nn.Linear(dim, 3 * dim)
        self.merge = nn.Linear(dim, dim)
        wide, narrow = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.network = nn.Sequential(wide, nn.GELU(), narrow)
        self.share, self.block_share = share, block_share
        self.attention_penalty = AttentionPenalty(sprint, dim, heads) if sprint.attention else None
        self.network_penalty = ProductPenalty(sprint.feed_forward, dim, inner) if sprint.feed_forward else None
        for layer in (self.project, self.merge, wide, narrow):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, T, D] to [B, T, D], and the block's penalty, [].

        The weights of attention are computed one by one where they are penalised, and fused with their use elsewhere.
        """
        penalty = hidden.new_zeros(())
        heads = self.project(self.attention_norm(hidden)).unflatten(-1, (3, self.heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        if self.training and self.attention_penalty is not None:
            attention = causal_attention(query, key)
            values = self.project.weight.unflatten(0, (3, self.heads, -1))[2]
            penalty = penalty + self.attention_penalty(attention, real, values, self.merge.weight)
            attended = dropout(attention, self.share, training=True) @ value
        else:
            attended = functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, dropout_p=self.share if self.training else 0.0
            )
        if self.training and self.network_penalty is not None:
            penalty = penalty + self.network_penalty(self.network[0].weight, self.network[2].weight)
        merged = self.merge(attended.transpose(1, 2).flatten(2))
        hidden = hidden + dropout(merged, self.block_share, training=self.training)
        hidden = hidden + dropout(self.network(self.network_norm(hidden)), self.block_share, training=self.training)
        return hidden, penalty
