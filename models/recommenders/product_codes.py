"""Product codes: an item is many unordered codes, and all codes of the next item are predicted at once.

After RPG (Hou et al., "Generating Long Semantic IDs in Parallel for Recommendation", KDD 2025, arXiv 2506.05781), with
two differences. RPG trains each code by itself; here the loss is normalised over the catalogue (`objective: codes` is
RPG's). RPG walks a graph of items with like codewords; here all items are scored, or, beyond `exact_items`, searched as
vectors. The name `rpg` is reserved for RPG as published.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveInt, model_validator
from torch import nn
from torch.nn import functional

from models.common.jagged import Jagged
from models.common.recommender import Recommended
from models.recommenders.catalogue_loss import CatalogueLoss, NegativesConfig, cross_entropy
from models.recommenders.inner_product import InnerProductIndex
from models.recommenders.next_item import EncoderConfig, NextItemModel
from models.recommenders.product_quantizer import Quantized
from storage.errors import UserError

USERS = 64  # scored side by side: the log-probabilities of more would leave the cache
SCALE, NOISE = 0.03, 0.002  # root mean square of the codes' own dimensions, and of the others, at the start


class ProductCodesConfig(EncoderConfig, NegativesConfig):
    """Size of the model of product codes.

    Attributes:
        objective: `catalogue`: cross-entropy over all items; `codes`: over the codewords of each code by itself, for
            catalogues too large for products of states with all items.
        exact_items: a larger catalogue is searched approximately instead of scored as a whole, but for a penalty.
    """

    dim: PositiveInt = 128
    objective: Literal["catalogue", "codes"] = "catalogue"
    exact_items: PositiveInt = 1_000_000

    @model_validator(mode="after")
    def _negatives_are_items(self) -> ProductCodesConfig:
        if self.negatives and self.objective == "codes":
            raise ValueError("no items are compared by objective: codes: leave negatives out, or write catalogue")
        return self


class ProductCodes(NextItemModel):
    """An item is M unordered codes; its score is the sum of their log-probabilities, each over its own C codewords.

    A code's logits are the products of its codewords' vectors with the state; the encoder reads the sum of the vectors
    of an item's codes. Each code has dimensions of its own in which its vectors begin as its codewords, so that the sum
    is what was quantised: training begins with neighbours in place instead of finding them.

    Of the C^M combinations only N are items, so the loss is minus the log-probability of the target given that some
    item of the catalogue is meant. The normalisers of the codes are the same for all items and cancel; so the order of
    items is that of the inner products of the state with their vectors.
    """

    kind: ClassVar[str] = "product_codes"

    def __init__(self, config: ProductCodesConfig, quantized: Quantized, counts: torch.Tensor | None = None) -> None:
        """Makes a model of N items.

        Args:
            config: its size.
            quantized: the items' codes.
            counts: how often training chooses each item, int64 [N]; None: all alike. An item without an event has
                the vectors of its codes from others.

        Raises:
            UserError: the dimensions are not those of the codewords.
        """
        super().__init__(config, items=len(quantized.codes), counts=counts)
        parts, codewords, width = quantized.codewords.shape
        if parts * width != config.dim:
            raise UserError(f"The codewords are of {parts * width} dimensions: set model.dim to that.")
        self.objective, self.exact_items = config.objective, config.exact_items
        self._index: InnerProductIndex | None = None
        self.codes: torch.Tensor
        self.register_buffer("codes", quantized.codes)
        self._add_rows(codewords)
        counts = torch.ones(self.items, dtype=torch.int64) if counts is None else counts
        self.catalogue_loss = CatalogueLoss(counts, config)
        self.codeword = nn.Parameter(torch.randn(parts, codewords, config.dim) * NOISE)
        scaled = quantized.codewords * (SCALE / quantized.codewords.square().mean().sqrt().clamp_min(1e-12))
        with torch.no_grad():
            for part in range(parts):
                self.codeword[part, :, part * width : (part + 1) * width] += scaled[part]

    @classmethod
    def from_artifact(cls, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> ProductCodes:
        """Rebuilds a model from its `artifact_config` and its tensors."""
        settings, (parts, codewords) = ProductCodesConfig.model_validate(config["config"]), config["codewords"]
        words = torch.zeros(parts, codewords, settings.dim // parts)
        model = cls(settings, Quantized(tensors["codes"], words))
        model.load_state_dict(tensors, assign=True)
        return model

    def artifact_config(self) -> dict[str, Any]:
        """Returns what rebuilds the module beside its tensors."""
        return {**super().artifact_config(), "codewords": list(self.codeword.shape[:2])}

    def train(self, mode: bool = True) -> ProductCodes:
        """Sets the mode, and forgets the index, which is of the weights as they were."""
        self._index = None
        return super().train(mode)

    def _add_rows(self, codewords: int) -> None:
        """Derives what sums need: items to rows of all codes' vectors, and such a row to its items."""
        rows = self.codes + torch.arange(self.codes.shape[1]) * codewords
        counts = rows.flatten().bincount(minlength=self.codes.shape[1] * codewords)
        found = (rows, rows.flatten().argsort(stable=True) // rows.shape[1], counts.cumsum(0) - counts)
        self.rows: torch.Tensor
        self.members: torch.Tensor
        self.starts: torch.Tensor
        for name, tensor in zip(("rows", "members", "starts"), found, strict=True):
            self.register_buffer(name, tensor.int(), persistent=False)

    def vectors(self, items: torch.Tensor) -> torch.Tensor:
        """Returns the sums of the vectors of items' codes, [n, D]."""
        return functional.embedding_bag(self.rows[items], self.codeword.flatten(0, 1), mode="sum")

    def every_vector(self) -> torch.Tensor:
        """Returns those of all items, [N, D]."""
        return _Sums.apply(self.codeword.flatten(0, 1), self.rows, self.members, self.starts)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the logits of every code, [B, M, C], for states [B, D]."""
        return (hidden @ self.codeword.flatten(0, 1).T).unflatten(1, self.codeword.shape[:2])

    def mean_loss(self, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the cross-entropy over the items to choose from, or the mean of that of each code."""
        if self.objective == "catalogue":
            read = self.vectors if self.catalogue_loss.negatives else self.every_vector().__getitem__
            return self.catalogue_loss(hidden, target, read)
        codes = self.codes[target]
        parts = zip(self.codeword, codes.T, strict=True)
        return torch.stack([cross_entropy(hidden, words, wanted) for words, wanted in parts]).mean()

    @torch.no_grad()
    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the sums of the log-probabilities of items' codes, float32 [B, N].

        Products of the states with `every_vector` would be these but for rounding, and order near ties differently.
        Sums over rows of a table that has the users side by side are many times as fast as gathers of one number each.
        """
        log_probs = self.logits(hidden).float().log_softmax(-1)
        scores = log_probs.new_empty(len(hidden), self.items)
        for part, out in zip(log_probs.split(USERS), scores.split(USERS), strict=True):
            table = part.flatten(1).T.contiguous()
            out.copy_(functional.embedding_bag(self.rows, table, mode="sum").T)
        return scores

    def top(self, hidden: torch.Tensor, *, k: int, banned: Jagged | None, allowed: torch.Tensor | None) -> Recommended:
        """Returns the k best items for states [B, D]: exactly, or in a large catalogue by a search that misses some."""
        if self.items <= self.exact_items or self.penalty is not None:
            return super().top(hidden, k=k, banned=banned, allowed=allowed)
        if self._index is None:
            self._index = InnerProductIndex(self.every_vector())
        found = self._index.search(hidden.float().cpu(), k=k, banned=banned, allowed=allowed)
        normalisers = self.logits(hidden).float().logsumexp(-1).sum(1, keepdim=True)
        return found._replace(scores=found.scores - normalisers.cpu())


class _Sums(torch.autograd.Function):
    """The sum of the vectors of every item's codes; the gradient sums the items of every vector in the same way.

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
