"""Recommending by a language model over semantic IDs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

from models.common.jagged import Jagged, gather
from models.common.recommender import Recommended, concatenate
from models.generation.decoding import Beams, search
from models.generation.examples import Corpus, prompts
from models.generation.language import LanguageModel, load_generator, save_generator
from models.generation.trie import Trie
from models.generation.vocabulary import Vocabulary
from models.recommenders.settings import LanguageModelSettings
from storage import files
from storage.artifacts import save_model
from storage.errors import UserError

USERS = 64  # per search, at most
SEARCHED = 1 << 14  # beams of all users of a search, at most


class LanguageModelRecommender:
    """Returns the best items that a beam search finds behind the prompt of the recommending task."""

    kind: ClassVar[str] = "language_model"

    def __init__(self, model: LanguageModel, corpus: Corpus, trie: Trie, settings: LanguageModelSettings) -> None:
        """Takes a model and its catalogue.

        Args:
            model: in evaluation mode when it is asked.
            corpus: of which the vocabulary, the semantic IDs and the length of histories are used.
            trie: of the corpus's semantic IDs.
            settings: whose recommending task and beams are used.
        """
        self.model, self.corpus, self.settings = model, corpus, settings
        self._device = next(model.parameters()).device
        self.trie = trie.to(self._device)

    def recommend(
        self, histories: Jagged, *, k: int, banned: Jagged | None = None, allowed: torch.Tensor | None = None
    ) -> Recommended:
        """See `models.common.recommender.Recommender`.

        Raises:
            UserError: k is beyond the number of beams.
        """
        return self.recommend_each(histories, k=k, banned=[banned], allowed=allowed)[0]

    @property
    def most(self) -> int:
        """See `models.common.recommender.Searcher`."""
        return self.settings.beams

    def recommend_each(
        self, histories: Jagged, *, k: int, banned: Sequence[Jagged | None], allowed: torch.Tensor | None = None
    ) -> list[Recommended]:
        """See `models.common.recommender.Searcher`."""
        return self.ranked(
            lambda found, given: [beams.best(k) for beams in found], histories, k=k, banned=banned, allowed=allowed
        )

    def ranked(
        self,
        rank: Callable[[list[Beams], Jagged], list[Recommended]],
        histories: Jagged,
        *,
        k: int,
        banned: Sequence[Jagged | None],
        allowed: torch.Tensor | None,
    ) -> list[Recommended]:
        """Returns the lists of k items that `rank` makes of some users' beams, on the CPU, and of their histories.

        There are as many beams of each user, and lists, as `banned` has entries.
        """
        if (beams := self.settings.beams) < k:
            raise UserError(f"{beams} beams cannot find {k} items: set beams to at least {k}.")
        found = []
        lengths = histories.offsets.diff().clamp_max(self.corpus.history)
        order = lengths.argsort(stable=True)  # prompts of about one length share a block
        users = max(1, min(USERS, SEARCHED // (beams * len(banned))))
        for block in order.split(users) if len(order) else ():
            given = gather(histories, block)
            tokens, sizes = prompts(self.corpus, self.settings.recommending_task, given)
            searched = search(
                self.model,
                self.trie,
                tokens.to(self._device),
                sizes.to(self._device),
                beams=beams,
                banned=[None if each is None else gather(each, block) for each in banned],
                allowed=allowed,
            )
            found.append(rank([Beams(*(part.cpu() for part in each)) for each in searched], given))
        back = order.argsort()
        return [concatenate([lists[at] for lists in found], k=k).take(back) for at in range(len(banned))]

    def save(self, uri: str, state: dict[str, torch.Tensor]) -> None:
        """Writes an artifact for `models.recommenders.artifacts.load`: the model, and all that decoding needs.

        Args:
            uri: a folder.
            state: the model's whole state dict, as `models.common.data_parallel.gather_state` returns it.
        """
        save_generator(files.join(uri, "model"), self.model, state)
        settings = self.settings.model_dump(mode="json")
        save_model(uri, self.kind, {"settings": settings}, {"sid_codes": self.corpus.sid_codes})

    @classmethod
    def from_artifact(
        cls, uri: str, config: dict[str, Any], tensors: dict[str, torch.Tensor], device: torch.device
    ) -> LanguageModelRecommender:
        """Rebuilds from what `save` wrote; reads nothing of the run."""
        settings = LanguageModelSettings.model_validate(config["settings"])
        model = load_generator(files.join(uri, "model")).to(device)
        corpus = corpus_of_ids(settings, model.vocabulary, tensors["sid_codes"])
        return cls(model, corpus, Trie.build(corpus.sid_codes, model.vocabulary.sizes), settings)


def corpus_of_ids(settings: LanguageModelSettings, vocabulary: Vocabulary, codes: torch.Tensor) -> Corpus:
    """Returns a corpus of semantic IDs alone, int64 [N, L']: what recommending from them needs."""
    zero = torch.zeros(1, dtype=torch.int64)
    no_texts = Jagged(zero[:0], zero.expand(len(codes) + 1))
    return Corpus(
        vocabulary,
        codes,
        titles=no_texts,
        captions=no_texts,
        sequences=Jagged(zero[:0], zero),
        held_out=torch.zeros(len(codes), dtype=torch.bool),
        history=settings.history,
        max_text=settings.max_text,
        tokens_per_row=settings.tokens_per_row,
    )
