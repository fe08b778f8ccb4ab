"""Recommending by a language model over semantic IDs."""

from __future__ import annotations

import torch

from models.common.jagged import Jagged, gather
from models.common.recommender import Recommended
from models.generation.decoding import beam_search
from models.generation.examples import Corpus, prompts
from models.generation.language import LanguageModel
from models.generation.tasks import Task
from models.generation.trie import Trie

USERS = 64  # per search


class SequentialRecommender:
    """The best items that a beam search finds behind the prompt of a task."""

    def __init__(self, model: LanguageModel, corpus: Corpus, task: Task, *, beams: int) -> None:
        """Index a catalogue.

        Args:
            model: in evaluation mode when it is asked.
            corpus: of which the vocabulary, the paths and the length of histories are used.
            task: that reads semantic IDs of histories and writes one.
            beams: of the search.
        """
        self.model, self.corpus, self.task, self.beams = model, corpus, task, beams
        device = next(model.parameters()).device
        self.trie = Trie.build(corpus.paths, corpus.vocabulary.sizes).to(device)
        self._device = device

    def recommend(
        self, histories: Jagged, *, k: int, banned: Jagged | None = None, allowed: torch.Tensor | None = None
    ) -> Recommended:
        """See `models.common.recommender.Recommender`.

        Raises:
            UserError: k is beyond the number of beams.
        """
        found = [Recommended(torch.empty(0, k, dtype=torch.int64), torch.empty(0, k))]
        lengths = histories.offsets.diff().clamp_max(self.corpus.history)
        order = lengths.argsort(stable=True)  # prompts of about one length share a block
        for block in order.split(USERS) if len(order) else ():
            tokens, sizes = prompts(self.corpus, self.task, gather(histories, block))
            own = None if banned is None else gather(banned, block)
            best = beam_search(
                self.model,
                self.trie,
                tokens.to(self._device),
                sizes.to(self._device),
                beams=self.beams,
                k=k,
                banned=own if own is None else Jagged(own.values.to(self._device), own.offsets.to(self._device)),
                allowed=None if allowed is None else allowed.to(self._device),
            )
            found.append(Recommended(best.items.cpu(), best.scores.cpu()))
        items, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
        back = order.argsort()
        return Recommended(items[back], scores[back])
