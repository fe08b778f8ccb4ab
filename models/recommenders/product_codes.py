"""Product codes: an item is many unordered codes, and its vector the sum of theirs.

After RPG (`models.recommenders.rpg`), with two differences. RPG trains each code by itself; here the loss is normalised
over the catalogue, or over negatives, so that the codes of an item are learned together. RPG's items are their codes
alone; here they may have a vector of their own besides (`residual`), and the encoder may read their embeddings
(`content`).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn
from torch.nn import functional

from models.common.jagged import Jagged
from models.common.recommender import Recommended
from models.recommenders.catalogue_model import CatalogueConfig, CatalogueModel
from models.recommenders.inner_product import InnerProductIndex
from models.recommenders.product_quantizer import Quantized, code_rows
from storage.errors import UserError

SCALE, NOISE = 0.03, 0.002  # root mean square of the codes' own dimensions, and of the others, at the start


class ProductCodesConfig(CatalogueConfig):
    """Size of the model of product codes.

    Attributes:
        residual: adds to the codes' sum a vector of the item's own, which in training is left out for this share of the
            items; null: there are no such vectors.
        content: whether the encoder reads items' embeddings, too, through a linear map.
        exact_items: a larger catalogue is searched approximately instead of scored as a whole, but for a penalty.
    """

    dim: PositiveInt = 128
    logits: Literal["cosine", "dot"] = "dot"
    residual: float | None = Field(None, ge=0, lt=1)
    content: bool = False
    exact_items: PositiveInt = 1_000_000


class ProductCodes(CatalogueModel):
    """An item is M unordered codes, each one of C codewords; its vector is the sum of theirs.

    Each code has dimensions of its own in which its vectors begin as its codewords, so that the sum is what was
    quantised: training begins with neighbours in place instead of finding them.

    With products as logits, an item's score is the sum of the logits of its codes. Of the C^M combinations only N are
    items, so the loss is minus the log-probability of the target given that some item of the catalogue is meant: were
    each code a softmax over its codewords, the normalisers would be the same for all items and cancel.

    Residual vectors begin at 0, and that of an item without an event stays there. Every step leaves out those of a
    share of the items, which their codes then have to tell: so the codes learn what new and rare items need. What is
    read and what is compared are drawn apart.
    """

    kind: ClassVar[str] = "product_codes"
    tables = ("residual",)

    def __init__(
        self,
        config: ProductCodesConfig,
        quantized: Quantized,
        counts: torch.Tensor | None = None,
        content: torch.Tensor | None = None,
    ) -> None:
        """Makes a model of N items.

        Args:
            config: its size.
            quantized: the items' codes.
            counts: how often training chooses each item, int64 [N]; None: all alike. An item without an event has
                the vectors of its codes from others.
            content: the items' embeddings, float32 [N, W], where `config` says so.

        Raises:
            UserError: the dimensions are not those of the codewords.
        """
        super().__init__(config, torch.ones(len(quantized.codes), dtype=torch.int64) if counts is None else counts)
        parts, codewords, width = quantized.codewords.shape
        if parts * width != config.dim:
            raise UserError(f"The codewords are of {parts * width} dimensions: set model.dim to that.")
        self.exact_items, self.share = config.exact_items, config.residual
        self.codes: torch.Tensor
        self.register_buffer("codes", quantized.codes)
        self._add_rows(codewords)
        self.codeword = nn.Parameter(torch.randn(parts, codewords, config.dim) * NOISE)
        scaled = quantized.codewords * (SCALE / quantized.codewords.square().mean().sqrt().clamp_min(1e-12))
        with torch.no_grad():
            for part in range(parts):
                self.codeword[part, :, part * width : (part + 1) * width] += scaled[part]
        if self.share is not None:
            self.residual = nn.Parameter(torch.zeros(self.items, config.dim))
        self.content: torch.Tensor | None
        self.register_buffer("content", content)
        if content is not None:
            self.reader = nn.Linear(content.shape[1], config.dim, bias=False)
            nn.init.normal_(self.reader.weight, std=SCALE)

    @classmethod
    def from_artifact(cls, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> ProductCodes:
        """Rebuilds a model from its `artifact_config` and its tensors."""
        settings, (parts, codewords) = ProductCodesConfig.model_validate(config["config"]), config["codewords"]
        words = torch.zeros(parts, codewords, settings.dim // parts)
        content = tensors["content"] if settings.content else None
        model = cls(settings, Quantized(tensors["codes"], words), content=content)
        model.load_state_dict(tensors, assign=True)
        return model

    def artifact_config(self) -> dict[str, Any]:
        """Returns what rebuilds the module beside its tensors."""
        return {**super().artifact_config(), "codewords": list(self.codeword.shape[:2])}

    def _add_rows(self, codewords: int) -> None:
        """Derives what sums need: items to rows of all codes' vectors, and such a row to its items."""
        rows = code_rows(self.codes, codewords)
        counts = rows.flatten().bincount(minlength=self.codes.shape[1] * codewords)
        found = (rows, rows.flatten().argsort(stable=True) // rows.shape[1], counts.cumsum(0) - counts)
        self.rows: torch.Tensor
        self.members: torch.Tensor
        self.starts: torch.Tensor
        for name, tensor in zip(("rows", "members", "starts"), found, strict=True):
            self.register_buffer(name, tensor.int(), persistent=False)

    def vectors(self, items: torch.Tensor) -> torch.Tensor:
        """Returns the sums of the vectors of items' codes, and their own, [n, D]."""
        sums = functional.embedding_bag(self.rows[items], self.codeword.flatten(0, 1), mode="sum")
        return sums if self.share is None else sums + functional.embedding(items, self.residual) * self._kept()[items]

    def every_vector(self) -> torch.Tensor:
        """Returns those of all items, [N, D]."""
        sums: torch.Tensor = _Sums.apply(self.codeword.flatten(0, 1), self.rows, self.members, self.starts)
        return sums if self.share is None else sums + self.residual * self._kept()

    def inputs(self, items: torch.Tensor) -> torch.Tensor:
        """Returns the vectors of items, and what is read of their embeddings, [n, D]."""
        vectors = self.vectors(items)
        return vectors if self.content is None else vectors + self.reader(self.content[items])

    def top(self, hidden: torch.Tensor, *, k: int, banned: Jagged | None, allowed: torch.Tensor | None) -> Recommended:
        """Returns the k best items for states [B, D]: exactly, or in a large catalogue by a search that misses some."""
        if self.items <= self.exact_items or self.penalty is not None:
            return super().top(hidden, k=k, banned=banned, allowed=allowed)
        index = self._answering(InnerProductIndex)
        return index.search(self._query(hidden).float().cpu(), k=k, banned=banned, allowed=allowed)

    def _kept(self) -> torch.Tensor:
        """Returns which own vectors count, 1 or 0, float32 [N, 1]; in training those of a share of the items do not."""
        kept = torch.ones(self.items, 1, device=self.codes.device)
        return kept.bernoulli_(1 - self.share) if self.training and self.share else kept


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
