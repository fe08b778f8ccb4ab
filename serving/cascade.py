"""The recommenders and the ranker of a run, one after the other: candidates, their places, a score. No ids, no Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import torch

from models.common.growing import Growing
from models.common.jagged import Jagged, shared
from models.common.recommender import Recommender
from models.recommenders.artifacts import load
from models.recommenders.content import content_and_popularity, normalise
from models.recommenders.language_model import LanguageModelRecommender
from models.recommenders.popularity import MostPopular
from models.recommenders.rescoring import Rescored
from operators.features.ranker_inputs import aligned, read_embeddings
from operators.log.partitions import item_ids, open_log
from operators.log.sequences import Training
from serving.candidates import SMOOTHING, WithNew, find, fused, overlap, placed, quotas, reciprocal
from serving.ranking import RunRanker, Users
from storage import files
from storage.manifest import first_unfinished
from storage.mapped import map_table
from storage.run import RunDir

CONTENT, POPULARITY = "content", "popularity"  # recommenders that a run has without a fit
RANKER = "ranker"  # what its weight is called beside those of recommenders
Fitted = Mapping[str, Recommender]
PIPELINE = "pipeline"  # what metrics/evaluate.json says of the whole


class Blend(NamedTuple):
    """How candidates are found and scored.

    Attributes:
        candidates: of each recommender, by name.
        weights: of their lists and of the ranker's in the score, by name; who is not named has none.
        smoothing: of the places in these lists; see `serving.candidates.fused`.
    """

    candidates: dict[str, int]
    weights: dict[str, float]
    smoothing: float = SMOOTHING


class Ranked(NamedTuple):
    """Candidates of B users in the lists of the recommenders and of the ranker.

    Attributes:
        items: rows of the catalogue, int64 [B, C]; -1 where there is none.
        places: from 0, infinity where a list lacks the item, float32 [B, C, S]; the last list is the ranker's, where
            the run has one.
        logits: of the ranker, float32 [B, C]; -inf where there is no candidate or no ranker.
    """

    items: torch.Tensor
    places: torch.Tensor
    logits: torch.Tensor


class Cascade:
    """A run's recommenders find candidates, its ranker orders them, and the places in all these lists make the score.

    Attributes:
        embedding: of the items, float32 [N, D].
        popularity: how often each item was liked, float32 [N].
        candidates: of a query, by all recommenders together.
        recommenders: by name, those that the run has fitted, content and popularity.
        ranker: None where the run has none.
        blend: what `evaluate` has chosen. Before that candidates come from the recommender that `generate` has chosen
            and from content, and the ranker orders them; without a ranker that recommender does.
    """

    def __init__(
        self, run: RunDir, *, candidates: int = 200, fitted: Fitted | None = None, training: Training | None = None
    ) -> None:
        """Loads a run whose stage `rank` or `generate` is complete; see `serving.settings.check_servable`.

        Args:
            run: the run.
            candidates: of a query, by all recommenders together.
            fitted: recommenders of the run that need not be loaded, by name.
            training: what is known of items where later events are asked for; that of the whole log where it is None.

        Raises:
            UserError: a model is missing or damaged, or an artifact lacks items.
        """
        self.embedding = aligned(item_ids(run), read_embeddings(run))
        self.popularity = popularity(run) if training is None else training.positives.astype(np.float32)
        popular = shared(self.popularity)
        self.candidates, known = candidates, fitted or {}
        ranks, generates = (first_unfinished(run.root, (stage,)) is None for stage in ("rank", "generate"))
        retriever = run.read_json("models", "retriever", "config.json") if ranks else {"popularity_weight": 1.0}
        generated: Any = run.read_json("metrics", "generate.json") if generates else {"valid": {}, "chosen": CONTENT}
        self.content = content_and_popularity(self.embedding, popular, retriever["popularity_weight"])
        self.recommenders: dict[str, Recommender] = {
            **{name: known.get(name) or load(run.uri("models", "generator", name)) for name in generated["valid"]},
            CONTENT: self.content,
            POPULARITY: MostPopular(popular),
        }
        self._vectors, self._bonus = Growing(self.content.vectors), Growing(cast("torch.Tensor", self.content.bonus))
        self.ranker = RunRanker(run, training) if ranks else None
        found = list(dict.fromkeys([generated["chosen"], CONTENT]))
        self.blend = Blend(quotas(found, candidates), {RANKER if ranks else found[0]: 1.0})
        evaluated = first_unfinished(run.root, ("evaluate",)) is None
        if evaluated and (found_best := run.read_json("metrics", "evaluate.json").get(PIPELINE)):
            wanted = quotas(found_best["recommenders"], candidates)
            self.blend = Blend(wanted, found_best["weights"], found_best["smoothing"])

    def ranked(
        self,
        users: Users,
        wanted: Mapping[str, int],
        *,
        banned: Jagged,
        allowed: torch.Tensor | None = None,
        items: int | None = None,
    ) -> Ranked:
        """Finds candidates for B users and orders them.

        Args:
            users: whose they are.
            wanted: how many of each recommender, by name.
            banned: item rows that each user must not get.
            allowed: bool [items], items that anybody may get; all where it is None.
            items: how many there are, those that were appended included, of which content alone knows; N unless said.
        """
        own = len(self.embedding)
        items = own if items is None else items
        recommenders, known = self.recommenders, dict[str, int]()
        if items > own:
            content = replace(self.content, vectors=self._vectors.rows[:items], bonus=self._bonus.rows[:items])
            recommenders, known = {**recommenders, CONTENT: WithNew(content, own)}, dict.fromkeys(wanted, own)
            known.pop(CONTENT, None)
        found = find(recommenders, wanted, users.liked, banned=banned, allowed=allowed, known=known)
        if self.ranker is None:
            return Ranked(*found, torch.full(found.items.shape, -torch.inf))
        logits = self.logits(users, found.items)
        return Ranked(found.items, torch.cat([found.places, placed(logits)[..., None]], dim=2), logits)

    @property
    def vectors(self) -> torch.Tensor:
        """Those of all items by which content finds them, unit length, float32 [N + n, D]."""
        return self._vectors.rows

    def append(self, items: pa.Table, codes: np.ndarray, embedding: torch.Tensor) -> None:
        """Takes items behind those that there are; see `serving.ranking.RunRanker.append`.

        How popular they are is not known: `WithNew` finds them.
        """
        if self.ranker is not None:
            self.ranker.append(items, codes, embedding)
        self._bonus.append(torch.full((len(embedding),), -torch.inf))
        self._vectors.append(normalise(embedding, self.embedding))

    def joined(self, users: Users, ranked: Ranked, more: torch.Tensor) -> Ranked:
        """Adds candidates that no list has, rows int64 [B, n], -1 for none."""
        nowhere = torch.full((*more.shape, ranked.places.shape[2]), torch.inf)
        logits = torch.cat([ranked.logits, self.logits(users, more)], 1)
        return Ranked(torch.cat([ranked.items, more], 1), torch.cat([ranked.places, nowhere], 1), logits)

    def logits(self, users: Users, items: torch.Tensor) -> torch.Tensor:
        """Returns the ranker's logits of items, rows int64 [B, C], -1 for none: float32 [B, C], -inf for none."""
        logits, usable = torch.full(items.shape, -torch.inf), items >= 0
        if self.ranker is not None and usable.any():
            logits[usable] = self.ranker.logits(users, owner=usable.nonzero()[:, 0], rows=items[usable])
        return logits

    def scores(self, ranked: Ranked, wanted: Mapping[str, int]) -> torch.Tensor:
        """Returns the scores of candidates, float32 [B, C], higher first, -inf where there is none.

        Where a query names recommenders that have no weight, the ranker alone orders what they find; where it has none
        either, their places do. So does popularity, which stands in where nothing is known of a user: the ranker has
        learned from users of whom something is. In lists that cannot have them, items
        behind the run's count as what stands at their place in content's does on average: as much as that place is
        worth, times the share of content's items that the list has.
        """
        names = [*wanted, *([RANKER] if self.ranker else [])]
        weights = [self.blend.weights.get(name, 0.0) for name in names]
        if list(wanted) == [POPULARITY] or not any(weights):
            weights = [float(name != RANKER) for name in names]
        worth, new = reciprocal(ranked.places, self.blend.smoothing), (ranked.items >= len(self.embedding))[..., None]
        if CONTENT in wanted and new.any():
            content = names.index(CONTENT)
            blind = torch.tensor([name not in (CONTENT, RANKER) for name in names])
            known = overlap(ranked.places.masked_fill(new, torch.inf), content)[:, None]
            worth = torch.where(new & blind, worth[..., [content]] * known, worth)
        return fused(worth, torch.tensor(weights)).masked_fill(ranked.items < 0, -torch.inf)


def language_models(run: RunDir) -> list[str]:
    """Returns the names of the run's recommenders that search with a language model."""
    if first_unfinished(run.root, ("generate",)) is not None:
        return []
    names: Any = run.read_json("metrics", "generate.json")["valid"]
    kinds = {name: run.read_json("models", "generator", name, "config.json")["kind"] for name in names}
    return [name for name, kind in kinds.items() if kind in (LanguageModelRecommender.kind, Rescored.kind)]


def popularity(run: RunDir) -> np.ndarray:
    """Returns how often each of a run's items was liked, float32 [N]; counted once per node, partition by partition."""
    log = open_log(run)
    schema = pa.schema([("likes", pa.float32())])

    def count() -> Iterator[pa.RecordBatch]:
        likes = np.zeros(len(log.items), np.int64)
        for number in range(log.about.partitions):
            events = log.part(number).events
            likes += np.bincount(events.item[events.label > 0], minlength=len(likes))
        yield pa.record_batch([pa.array(likes, pa.float32())], schema=schema)

    about = [log.folder, *files.signature(run.uri("embeddings"))]
    likes: np.ndarray = map_table(run, "popularity", about, schema, count)["likes"].to_numpy()
    return likes
