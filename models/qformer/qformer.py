"""The Q-Former of BLIP-2 (Li et al. 2023, arXiv 2301.12597), small and trained from scratch.

Learned queries read a picture by cross-attention in every other layer. Texts pass the same self-attention, and
feed-forward networks of their own. A mask, one for each objective, decides what queries and texts see of one another.
Layers normalise what they read (Xiong et al. 2020) where BERT normalises what they write: nothing here is pretrained.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor, nn

from models.common.dropout import dropout
from models.qformer.settings import Architecture
from models.qformer.tokens import PAD
from models.qformer.vision import CELLS, HISTOGRAMS, SHAPES, parts


class Sight(nn.Module):
    """A picture's features as tokens of the Q-Former's width."""

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.unseen, self.spread = config.unseen, (1, config.pooled_tokens, 1, 1)
        self.read = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.dim * spread))
            for (_, width), spread in zip(SHAPES, self.spread, strict=True)
        )
        self.places = nn.Parameter(torch.randn(CELLS, config.dim) * 0.02)  # shared by both grids
        self.kinds = nn.Parameter(torch.randn(2 + config.pooled_tokens + HISTOGRAMS, config.dim) * 0.02)
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, features: Tensor) -> Tensor:
        """Returns tokens [N, T, dim] of features [N, WIDTH]; a training step drops some of them."""
        last, pooled, early, colours = (
            layer(part).unflatten(2, (spread, -1)).flatten(1, 2)
            for layer, part, spread in zip(self.read, parts(features), self.spread, strict=True)
        )
        own = self.kinds[2:].split([pooled.shape[1], colours.shape[1]])
        grids = (last + self.places + self.kinds[0], early + self.places + self.kinds[1])
        tokens = torch.cat([grids[0], pooled + own[0], grids[1], colours + own[1]], dim=1)
        if self.training and self.unseen:
            count = tokens.shape[1]
            shown = torch.rand(count, device=tokens.device).argsort()[: round(count * (1 - self.unseen))]
            tokens = tokens[:, shown]
        normed: Tensor = self.norm(tokens)
        return normed


class Layer(nn.Module):
    """Self-attention of queries and texts, cross-attention of the queries to the picture, a network for each."""

    def __init__(self, config: Architecture, *, crosses: bool) -> None:
        super().__init__()
        dim, self.heads = config.dim, config.heads
        self.norm, self.qkv, self.out = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.crosses = crosses
        if crosses:
            self.cross_norm, self.cross_q = nn.LayerNorm(dim), nn.Linear(dim, dim)
            self.cross_kv, self.cross_out = nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.query_mlp, self.text_mlp = (
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, config.mlp), nn.GELU(), nn.Linear(config.mlp, dim))
            for _ in range(2)
        )
        self.dropout = config.dropout

    def forward(self, x: Tensor, queries: int, picture: Tensor | None, mask: Tensor | None) -> Tensor:
        """Returns the tokens of the next layer.

        Args:
            x: [N, queries + texts, dim].
            queries: how many come first.
            picture: [N, T, dim]; needed where there are queries.
            mask: bool [N or 1, 1, tokens, tokens], what each sees; None for all.
        """
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + self._drop(self.out(self._attend(q, k, v, mask)))
        asked, text = x[:, :queries], x[:, queries:]
        if queries and self.crosses:
            assert picture is not None  # noqa: S101 - for the type checker
            keys, values = self.cross_kv(picture).chunk(2, dim=-1)
            read = self._attend(self.cross_q(self.cross_norm(asked)), keys, values, None)
            asked = asked + self._drop(self.cross_out(read))
        if queries:
            asked = asked + self._drop(self.query_mlp(asked))
        if text.shape[1]:
            text = text + self._drop(self.text_mlp(text))
        return torch.cat([asked, text], dim=1)

    def _drop(self, values: Tensor) -> Tensor:
        return dropout(values, self.dropout, training=self.training)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class QFormer(nn.Module):
    """Queries and texts through all layers."""

    def __init__(self, config: Architecture) -> None:
        super().__init__()
        self.sight = Sight(config)
        self.queries = nn.Parameter(torch.randn(config.queries, config.dim) * 0.02)
        self.words = nn.Embedding(config.vocabulary, config.dim, padding_idx=PAD)
        nn.init.normal_(self.words.weight, std=0.02)
        self.positions = nn.Parameter(torch.randn(config.text_tokens + 1, config.dim) * 0.02)
        self.layers = nn.ModuleList(Layer(config, crosses=number % 2 == 0) for number in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = config.dropout

    def see(self, picture: Tensor) -> Tensor:
        """Returns the queries' outputs, [N, queries, dim], of a picture's tokens [N, T, dim]."""
        return self._pass(self._asked(len(picture)), self.queries.shape[0], picture, None)

    def read(self, text: Tensor) -> Tensor:
        """Returns what texts, int64 [N, T], are without a picture, [N, T, dim]; all their tokens see one another."""
        return self._pass(self._embedded(text), 0, None, (text != PAD)[:, None, None, :])

    def write(self, picture: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the queries' outputs, which see no text, and those of texts that see them and what was written.

        The outputs of the queries are those of `see`.
        """
        queries, length = self.queries.shape[0], text.shape[1]
        mask = torch.ones(queries + length, queries + length, dtype=torch.bool, device=text.device).tril()
        mask[:queries, :queries] = True
        x = torch.cat([self._asked(len(text)), self._embedded(text)], dim=1)
        out = self._pass(x, queries, picture, mask[None, None])
        return out[:, :queries], out[:, queries:]

    def match(self, picture: Tensor, text: Tensor) -> Tensor:
        """Returns the queries' outputs, [N, queries, dim], where queries and texts see all of one another."""
        queries = self.queries.shape[0]
        there = F.pad(text != PAD, (queries, 0), value=True)[:, None, None, :]
        x = torch.cat([self._asked(len(text)), self._embedded(text)], dim=1)
        return self._pass(x, queries, picture, there)[:, :queries]

    def _asked(self, count: int) -> Tensor:
        return self.queries.expand(count, -1, -1)

    def _embedded(self, text: Tensor) -> Tensor:
        return dropout(self.words(text) + self.positions[: text.shape[1]], self.dropout, training=self.training)

    def _pass(self, x: Tensor, queries: int, picture: Tensor | None, mask: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, queries, picture, mask)
        normed: Tensor = self.norm(x)
        return normed
