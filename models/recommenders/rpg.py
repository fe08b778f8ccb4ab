"""RPG (Hou et al., "Generating Long Semantic IDs in Parallel for Recommendation", KDD 2025, arXiv 2506.05781).

It differs from what was published in

* the answers: RPG walks a graph of items with like codewords; here all items are scored, which is what the walk
  approximates;
* the codes: OPQ is fitted on all items and in all directions of their embeddings, which are the run's (MiniLM, unless
  a definition says otherwise); there on the items of training, in the 512 directions that a PCA keeps of
  text-embedding-3-large;
* what is trained on: the last items of a history, one more than are read (51 by default); there every item of it, the
  later ones behind as many as are read;
* a learned start, from which the first item is predicted, and the blocks (`models.recommenders.encoder`), both as in
  all models of next items here;
* the biases of the heads, which start at 0, so that a head adds nothing at first; there at random;
* the optimizer: Adam's second beta is .98 and not .999, and the learning rate falls to a tenth and not to 0
  (`models.recommenders.fitting`).

What was made from it here, and does without these heads, is `models.recommenders.product_codes`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import nn
from torch.nn import functional

from models.recommenders.catalogue_loss import cross_entropy
from models.recommenders.next_item import EncoderConfig, NextItemModel
from models.recommenders.product_quantizer import code_rows

USERS = 64  # scored side by side: the log-probabilities of more would leave the cache


class RpgConfig(EncoderConfig):
    """Size of RPG; the defaults are those of its authors for Amazon Beauty.

    Attributes:
        temperature: by which cosines are divided.
    """

    dim: PositiveInt = 448
    heads: PositiveInt = 4
    inner: PositiveInt = 1024
    block_dropout: float | None = Field(0.0, ge=0, lt=1)
    temperature: float = Field(0.03, gt=0)


class Rpg(NextItemModel):
    """An item is M unordered codes; its score is the sum of their log-probabilities, each over its own C codewords.

    The encoder reads the mean of the vectors of an item's codes. Each code has a head of its own; its logits are the
    cosines of what the head makes of the state and of the codewords' vectors, divided by a temperature. The loss is
    the mean of the codes' cross-entropies.
    """

    kind: ClassVar[str] = "rpg"

    def __init__(
        self, config: RpgConfig, codes: torch.Tensor, codewords: int, counts: torch.Tensor | None = None
    ) -> None:
        """Takes the codes of N items, int64 [N, M], each one of `codewords`, and how often training chooses each."""
        super().__init__(config, items=len(codes), counts=counts)
        self.temperature = config.temperature
        self.codes: torch.Tensor
        self.rows: torch.Tensor
        self.register_buffer("codes", codes)
        self.register_buffer("rows", code_rows(codes, codewords), persistent=False)
        self.codeword = nn.Parameter(torch.randn(codes.shape[1], codewords, config.dim) * 0.02)
        self.heads = nn.ModuleList(Head(config.dim) for _ in range(codes.shape[1]))

    @classmethod
    def from_artifact(cls, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Rpg:
        """Rebuilds a model from its `artifact_config` and its tensors."""
        model = cls(RpgConfig.model_validate(config["config"]), tensors["codes"], tensors["codeword"].shape[1])
        model.load_state_dict(tensors, assign=True)
        return model

    def inputs(self, items: torch.Tensor) -> torch.Tensor:
        """Returns the means of the vectors of items' codes, [n, D]."""
        return functional.embedding_bag(self.rows[items], self.codeword.flatten(0, 1), mode="mean")

    def mean_loss(self, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the mean of the cross-entropies of all codes."""
        parts = zip(*self._compared(hidden), self.codes[target].T, strict=True)
        return torch.stack([cross_entropy(query, words, word) for query, words, word in parts]).mean()

    @torch.no_grad()
    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the sums of the log-probabilities of items' codes, float32 [B, N].

        Sums over rows of a table that has the users side by side are many times as fast as gathers of one number each.
        """
        scores = torch.empty(len(hidden), self.items, device=hidden.device)
        for part, out in zip(hidden.split(USERS), scores.split(USERS), strict=True):
            logits = torch.stack([query @ words.T for query, words in zip(*self._compared(part), strict=True)])
            table = logits.float().log_softmax(-1).transpose(1, 2).flatten(0, 1).contiguous()
            out.copy_(functional.embedding_bag(self.rows, table, mode="sum").T)
        return scores

    def _compared(self, hidden: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Returns what the logits of every code are products of: M states [B, D], and vectors [M, C, D]."""
        queries = [functional.normalize(head(hidden), dim=-1) / self.temperature for head in self.heads]
        return queries, functional.normalize(self.codeword, dim=-1)


class Head(nn.Module):
    """A linear layer and SiLU, added to what came in; at first nothing is added."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, D] to [B, D]."""
        return hidden + functional.silu(self.linear(hidden))
