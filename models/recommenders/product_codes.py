"""Parallel semantic IDs: all digits of the next item at once (after RPG; Hou et al., KDD 2025, arXiv 2506.05781)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import nn
from torch.nn import functional

from models.common.jagged import Jagged
from models.common.recommender import Recommended
from models.recommenders.graph import build_graph, exact, search
from models.recommenders.next_item import EncoderConfig, NextItemModel, cross_entropy
from models.recommenders.product_quantizer import Digits
from storage.errors import UserError

SCALE, NOISE = 0.03, 0.002  # root mean square of the digits' own dimensions, and of the others, at the start
NEIGHBOURS = 50  # of an item in the graph


class ParallelConfig(EncoderConfig):
    """Size of the parallel generator.

    Attributes:
        objective: `catalogue`: see `ParallelGenerator`; `digits`: each digit by itself, as in the paper, for catalogues
            too large for products of states with all items.
        exact_items: a larger catalogue is not scored as a whole but searched, see `models.recommenders.graph`.
    """

    dim: PositiveInt = 128
    objective: Literal["catalogue", "digits"] = "catalogue"
    exact_items: PositiveInt = 1_000_000


class ParallelGenerator(NextItemModel):
    """An item is M unordered digits; its score is the sum of their log-probabilities, each over its own C codewords.

    A digit's logits are the products of its vectors with the state; the encoder reads the sum of an item's digit
    vectors. Each digit has dimensions of its own in which its vectors begin as its codewords, so that the sum is what
    was quantised: training begins with neighbours in place instead of finding them.

    The paper trains each digit by itself. Of the C^M combinations only N are items, so that here the scores are
    normalised over the catalogue: the loss is minus the log-probability of the target given that some item of the
    catalogue is meant. The digits' own normalisers are the same for all items and cancel.
    """

    def __init__(self, config: ParallelConfig, digits: Digits) -> None:
        """Make a generator of N items.

        Raises:
            UserError: the dimensions are not those of the digits.
        """
        super().__init__(config, items=len(digits.codes))
        parts, codewords, width = digits.codewords.shape
        if parts * width != config.dim:
            raise UserError(f"The digits are of {parts * width} dimensions: set model.dim to that.")
        self.objective, self.exact_items = config.objective, config.exact_items
        self._graph: torch.Tensor | None = None
        self.codes: torch.Tensor
        self.register_buffer("codes", digits.codes)
        self._index(codewords)
        self.digit = nn.Parameter(torch.randn(parts, codewords, config.dim) * NOISE)
        scaled = digits.codewords * (SCALE / digits.codewords.square().mean().sqrt().clamp_min(1e-12))
        with torch.no_grad():
            for part in range(parts):
                self.digit[part, :, part * width : (part + 1) * width] += scaled[part]

    def train(self, mode: bool = True) -> ParallelGenerator:
        """Forget the graph, which is of the vectors as they were."""
        self._graph = None
        return super().train(mode)

    def _index(self, codewords: int) -> None:
        """Derive what sums need: items to rows of all digits' vectors, and such a row to its items."""
        rows = self.codes + torch.arange(self.codes.shape[1]) * codewords
        counts = rows.flatten().bincount(minlength=self.codes.shape[1] * codewords)
        found = (rows, rows.flatten().argsort(stable=True) // rows.shape[1], counts.cumsum(0) - counts)
        self.rows: torch.Tensor
        self.members: torch.Tensor
        self.starts: torch.Tensor
        for name, tensor in zip(("rows", "members", "starts"), found, strict=True):
            self.register_buffer(name, tensor.int(), persistent=False)

    def vectors(self, items: torch.Tensor) -> torch.Tensor:
        """Sum of the digits' vectors."""
        return functional.embedding_bag(self.rows[items], self.digit.flatten(0, 1), mode="sum")

    def every_vector(self) -> torch.Tensor:
        """Those of all items, [N, D]."""
        return _Sums.apply(self.digit.flatten(0, 1), self.rows, self.members, self.starts)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of every digit, [B, M, C], for states [B, D]."""
        return (hidden @ self.digit.flatten(0, 1).T).unflatten(1, self.digit.shape[:2])

    def mean_loss(self, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Cross-entropy over the catalogue, or of each digit; the mean."""
        if self.objective == "catalogue":
            return cross_entropy(hidden, self.every_vector(), target)
        codes = self.codes[target]
        parts = zip(self.digit, codes.T, strict=True)
        return torch.stack([cross_entropy(hidden, words, wanted) for words, wanted in parts]).mean()

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Sum over an item's digits of their log-probabilities."""
        return exact(self.logits(hidden).float().log_softmax(-1), self.codes)

    def top(self, hidden: torch.Tensor, *, k: int, banned: Jagged | None, allowed: torch.Tensor | None) -> Recommended:
        """The k best items for states [B, D]: exactly, or in a large catalogue by a search that misses some."""
        if self.items <= self.exact_items:
            return super().top(hidden, k=k, banned=banned, allowed=allowed)
        if self._graph is None:
            self._graph = build_graph(self.codes.cpu(), self.digit.detach().cpu(), NEIGHBOURS)
        logp = self.logits(hidden).float().log_softmax(-1).cpu()
        return search(logp, self.codes.cpu(), self._graph, k=k, banned=banned, allowed=allowed).best


class _Sums(torch.autograd.Function):
    """The sum of every item's digit vectors; the gradient sums the items of every digit vector in the same way.

    torch's own backward of an embedding bag adds row by row and takes ten times as long on a CPU.
    """

    @staticmethod
    def forward(
        context: Any, table: torch.Tensor, rows: torch.Tensor, members: torch.Tensor, starts: torch.Tensor
    ) -> torch.Tensor:
        context.save_for_backward(members, starts)
        return functional.embedding_bag(rows, table, mode="sum")

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        members, starts = context.saved_tensors
        return functional.embedding_bag(members, gradient.contiguous(), starts, mode="sum"), None, None, None
