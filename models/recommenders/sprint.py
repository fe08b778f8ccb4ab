"""SPRINT (arXiv 2606.21911, KDD 2026): terms of the loss that keep popularity from owning a transformer's scores.

Its authors find popularity in the first singular direction of the scores, which grows with every layer. They bound it
layer by layer and add the logs of the bounds to the loss, each times a weight:

* attention, of softmax weights S: ‖S‖₂ ≤ √(‖S‖₁ ‖S‖_∞) = √‖S‖₁, since rows sum to 1. ‖S‖₁, the largest sum of a
  column, is replaced by its smooth bound ‖S‖̃₁ = log Σ exp(τ · sum of a column) / τ over the columns of all sequences of
  a batch (`smooth_norm`). With value matrices V of the heads and the matrix O that merges them, a layer's term is
  log(1 + √(Σ_heads ‖S‖̃₁ ‖V‖₂²) · ‖O‖₂);
* feed-forward: log(1 + ‖W₁‖₂ ‖W₂‖₂) of a layer's two matrices;
* embedding: log(1 + ‖E‖₂) of the matrix of items' vectors.

Spectral norms come from one step of the power method for each step of the fit, which goes on from the vectors of the
step before. `torch.nn.utils.parametrizations.spectral_norm` takes the same steps, but divides the weights by the norm
and does not tell it.

Where the published text and code differ, this follows the code: log(1 + x), means over the layers, all heads under one
root, the embedding's term. It differs from both in that E holds the vectors as the loss compares them, of length 1
where scores are cosines; and that the columns of a step are those of one worker's part of the batch.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from models.common.settings import Settings


class SprintConfig(Settings):
    """What training pushes down beside its loss.

    Attributes:
        attention, feed_forward, embedding: weights of the three terms; 0: none.
        temperature: of the smooth bound, τ above; the larger it is, the more the largest column alone counts.
    """

    attention: float = Field(0.0, ge=0)
    feed_forward: float = Field(0.0, ge=0)
    embedding: float = Field(0.0, ge=0)
    temperature: float = Field(4.0, gt=0)


class SpectralNorm(nn.Module):
    """The largest singular values of matrices that change little from call to call."""

    def __init__(self, *shape: int) -> None:
        """Takes the shape of the matrices without that of their rows: [..., N]."""
        super().__init__()
        self.right: torch.Tensor
        self.register_buffer("right", torch.randn(*shape, 1, generator=torch.Generator().manual_seed(0)))

    def forward(self, matrices: torch.Tensor) -> torch.Tensor:
        """Takes a step for matrices, float32 [..., M, N]; returns lower bounds of their norms, [...]."""
        with torch.autocast(matrices.device.type, enabled=False):
            with torch.no_grad():
                left = functional.normalize(matrices @ self.right, dim=-2)
                right = functional.normalize(matrices.mT @ left, dim=-2)
                self.right.copy_(right)
            return (left.mT @ matrices @ right)[..., 0, 0]


class ProductPenalty(nn.Module):
    """A weight times log(1 + the product of the spectral norms of matrices)."""

    def __init__(self, weight: float, *widths: int) -> None:
        """Takes how many columns each of the matrices has."""
        super().__init__()
        self.weight, self.norms = weight, nn.ModuleList(map(SpectralNorm, widths))

    def forward(self, *matrices: torch.Tensor) -> torch.Tensor:
        """Returns the term, float32 []."""
        norms = [norm(matrix) for norm, matrix in zip(self.norms, matrices, strict=True)]
        return self.weight * torch.stack(norms).prod().log1p()


class AttentionPenalty(nn.Module):
    """The term of a layer's attention."""

    def __init__(self, config: SprintConfig, dim: int, heads: int) -> None:
        super().__init__()
        self.config = config
        self.value, self.merge = SpectralNorm(heads, dim), SpectralNorm(dim)

    def forward(
        self, attention: torch.Tensor, real: torch.Tensor, value: torch.Tensor, merge: torch.Tensor
    ) -> torch.Tensor:
        """Returns the term, float32 [].

        Args:
            attention: see `causal_attention`.
            real: bool [B, T], False for padding.
            value: weights that make the heads' values, [H, D / H, D].
            merge: those that merge what the heads return, [D, D].
        """
        squares = smooth_norm(attention, real, self.config.temperature) * self.value(value).square()
        return self.config.attention * (squares.sum().sqrt() * self.merge(merge)).log1p()


def causal_attention(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Returns what each position looks at, float32 [B, H, T, T], for queries and keys [B, H, T, D / H]."""
    logits = query @ key.mT / math.sqrt(query.shape[-1])
    later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
    return logits.masked_fill(later, -torch.inf).softmax(-1, dtype=torch.float32)


def smooth_norm(attention: torch.Tensor, real: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns a smooth upper bound of the largest sum of a column over a batch, of every head, [H].

    Args:
        attention: [B, H, T, T]; rows and columns of padding count for nothing.
        real: bool [B, T], False for padding.
        temperature: the bound is at most the log of the number of columns, divided by it, above the largest sum.
    """
    sums = attention.masked_fill(~real[:, None, :, None], 0.0).sum(2).masked_fill(~real[:, None], -torch.inf)
    return (temperature * sums).transpose(0, 1).flatten(1).logsumexp(1) / temperature
