"""Parallel semantic IDs: all digits of the next item at once (RPG; Hou et al., KDD 2025, arXiv 2506.05781)."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat
from torch import nn
from torch.nn import functional

from models.nextitem.base import EncoderConfig, NextItemModel
from models.nextitem.graph import exact


class ParallelConfig(EncoderConfig):
    """Size of the parallel generator.

    Attributes:
        temperature: that cosines are divided by.
    """

    dim: int = 128
    temperature: PositiveFloat = 0.07


class ParallelGenerator(NextItemModel):
    """An item is M unordered digits; its score is the sum of their log-probabilities, each over its own C codewords.

    The encoder reads the mean of an item's digit vectors. One small head per digit turns a state into a query, whose
    cosines to the digit's vectors are its logits (section 3.2 there).
    """

    def __init__(self, config: ParallelConfig, codes: torch.Tensor, *, codewords: int) -> None:
        """Make a generator over N items.

        Args:
            config: its size.
            codes: int64 [N, M], below `codewords`.
            codewords: C.
        """
        super().__init__(config, items=len(codes))
        digits = codes.shape[1]
        self.temperature = config.temperature
        self.codes: torch.Tensor
        self.register_buffer("codes", codes)
        self.digit = nn.Parameter(torch.empty(digits, codewords, config.dim))
        self.head = nn.Parameter(torch.empty(digits, config.dim, config.dim))
        self.head_bias = nn.Parameter(torch.zeros(digits, 1, config.dim))
        nn.init.normal_(self.digit, std=0.02)
        nn.init.normal_(self.head, std=0.02)

    def vectors(self, items: torch.Tensor) -> torch.Tensor:
        """Mean of the digits' vectors."""
        digits, codewords, _ = self.digit.shape
        rows = self.codes[items] + torch.arange(digits, device=items.device) * codewords
        return functional.embedding_bag(rows, self.digit.flatten(0, 1), mode="mean")

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of every digit, [M, B, C], for states [B, D]."""
        query = torch.baddbmm(self.head_bias, hidden.expand(len(self.digit), *hidden.shape), self.head)
        # one fused pass instead of the several of a norm: but for the mean of its entries this is the unit vector
        query = functional.layer_norm(hidden + functional.silu(query), hidden.shape[-1:])
        words = functional.normalize(self.digit, dim=-1) / (self.temperature * hidden.shape[-1] ** 0.5)
        return torch.bmm(query, words.mT)

    def losses(self, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean of minus the log-probabilities of the target's digits: its score, but for the sign and the factor M."""
        return functional.cross_entropy(self.logits(hidden).flatten(0, 1), self.codes[target].T.flatten())

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Sum over an item's digits of their log-probabilities."""
        return exact(self.logits(hidden).float().log_softmax(-1).transpose(0, 1), self.codes)
