"""The language model's beams, ranked once more by a model that scores whole items.

After LIGER (Yang et al., "Unifying Generative and Dense Retrieval for Sequential Recommendation", arXiv 2411.18814),
with three differences. LIGER is one model with two heads, here two are fitted apart. It ranks the items of the beams by
the dense score alone; here by the sum of both log-probabilities. It adds all items without an event to those of the
beams; here they come by the beams or not at all, and only where the dense model scores them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from models.common.jagged import Jagged
from models.common.recommender import Recommended
from models.generation.decoding import Beams, ranked
from models.recommenders.language_model import LanguageModelRecommender
from models.recommenders.next_item import NextItemModel
from storage import files
from storage.artifacts import save_model

GENERATOR, DENSE = "generator", "dense"  # folders of an artifact


class Rescored:
    """Returns the best items of a beam search by the sum of their log-probabilities under two models."""

    kind: ClassVar[str] = "rescored"

    def __init__(self, generator: LanguageModelRecommender, dense: NextItemModel) -> None:
        self.generator, self.dense = generator, dense

    def recommend(
        self, histories: Jagged, *, k: int, banned: Jagged | None = None, allowed: torch.Tensor | None = None
    ) -> Recommended:
        """See `models.common.recommender.Recommender`. A list is exact where no item outside the beams can sum to more.

        Raises:
            UserError: k is beyond the number of beams.
        """
        return self.recommend_each(histories, k=k, banned=[banned], allowed=allowed)[0]

    @property
    def most(self) -> int:
        """See `models.common.recommender.Searcher`."""
        return self.generator.most

    def recommend_each(
        self, histories: Jagged, *, k: int, banned: Sequence[Jagged | None], allowed: torch.Tensor | None = None
    ) -> list[Recommended]:
        """See `models.common.recommender.Searcher`."""

        def rank(found: list[Beams], given: Jagged) -> list[Recommended]:
            dense = self.dense.log_probs(given)
            most = dense.amax(1)
            return [ranked(items, scores + dense.gather(1, items), pruned + most, k) for items, scores, pruned in found]

        return self.generator.ranked(rank, histories, k=k, banned=banned, allowed=allowed)


def write_rescored(uri: str, generator: str, dense: str) -> None:
    """Writes an artifact for `models.recommenders.artifacts.load`, with copies of the artifacts of the two models."""
    files.copy(generator, files.join(uri, GENERATOR))
    files.copy(dense, files.join(uri, DENSE))
    save_model(uri, Rescored.kind, {}, {})
