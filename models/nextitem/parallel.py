"""Parallel semantic IDs: all digits of the next item at once (RPG; Hou et al., KDD 2025, arXiv 2506.05781)."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import nn
from torch.nn import functional

from models.nextitem.base import EncoderConfig, NextItemModel
from models.nextitem.graph import exact
from models.nextitem.opq import Digits
from storage.errors import UserError

SCALE, NOISE = 0.05, 0.002  # root mean square of the digits' own dimensions, and of the others, at the start


class ParallelConfig(EncoderConfig):
    """Size of the parallel generator.

    Attributes:
        temperature: that cosines are divided by.
    """

    dim: PositiveInt = 128
    temperature: PositiveFloat = 0.07


class ParallelGenerator(NextItemModel):
    """An item is M unordered digits; its score is the sum of their log-probabilities, each over its own C codewords.

    The encoder reads the sum of an item's digit vectors. One small head per digit turns a state into a query, whose
    cosines to the digit's vectors are its logits (section 3.2 there).
    """

    def __init__(self, config: ParallelConfig, digits: Digits) -> None:
        """Make a generator that begins with what the digits say of the items.

        Each digit has dimensions of its own, in which its vectors are its codewords, so that the sum of an item's
        vectors is what was quantised: training begins with neighbours in place instead of finding them.

        Raises:
            UserError: the dimensions are not those of the digits.
        """
        super().__init__(config, items=len(digits.codes))
        parts, codewords, width = digits.codewords.shape
        if parts * width != config.dim:
            raise UserError(f"The digits are of {parts * width} dimensions: set model.dim to that.")
        self.temperature = config.temperature
        self.codes: torch.Tensor
        self.register_buffer("codes", digits.codes)
        self.digit = nn.Parameter(torch.randn(parts, codewords, config.dim) * NOISE)
        self.head = nn.Parameter(torch.empty(parts, config.dim, config.dim))
        self.head_bias = nn.Parameter(torch.zeros(parts, 1, config.dim))
        nn.init.normal_(self.head, std=0.02)
        scaled = digits.codewords * (SCALE / digits.codewords.square().mean().sqrt().clamp_min(1e-12))
        with torch.no_grad():
            for part in range(parts):
                self.digit[part, :, part * width : (part + 1) * width] += scaled[part]

    def vectors(self, items: torch.Tensor) -> torch.Tensor:
        """Sum of the digits' vectors."""
        digits, codewords, _ = self.digit.shape
        rows = self.codes[items] + torch.arange(digits, device=items.device) * codewords
        return functional.embedding_bag(rows, self.digit.flatten(0, 1), mode="sum")

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
