"""The rules over the catalogue of a run: what they make of the candidates of a query."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from serving.catalogue import Catalogue
from serving.filters import Filter
from serving.rerank.exposure import Controller, seen_within
from serving.rerank.lists import Limit, alike, explored, greedy, standardised
from serving.rerank.rules import NOVELTY, RELEVANCE, RulesFile


class Order(NamedTuple):
    """What stands in an answer.

    Attributes:
        at: positions among the candidates, int64 [k].
        scores: of all C candidates, boosted, float32 [C].
        propensity: the probability of each item at its place, float64 [k].
    """

    at: torch.Tensor
    scores: torch.Tensor
    propensity: np.ndarray


class Reranker:
    """Orders candidates by the rules of a file."""

    def __init__(self, path: str, catalogue: Catalogue, *, popularity: np.ndarray, seen: np.ndarray) -> None:
        """Reads the file.

        Args:
            path: of the file; it is read again when it changes.
            catalogue: of N items, without those that were posted.
            popularity: how often each item was liked, float32 [N].
            seen: when each item was first seen, int64 [N], microseconds.

        Raises:
            UserError: the file has a mistake.
        """
        self.file = RulesFile(path, catalogue)
        self._seen, self._novelty = seen, -np.log1p(popularity)
        self._exposure = Controller()

    def pins(self, catalogue: Catalogue, where: Filter | None) -> dict[int, int]:
        """Returns the rows that are pinned in answers to requests with a filter, by their places from 0."""
        pins: dict[int, int] = {}
        for pin in self.file.current().pins:
            row = int(catalogue.rows([pin.item])[0])
            here = pin.where is None or pin.where == where
            usable = row >= 0 and here and row not in catalogue.gone
            usable = usable and (where is None or bool(catalogue.matching(where)[row]))
            if usable and pin.position - 1 not in pins and row not in pins.values():
                pins[pin.position - 1] = row
        return pins

    def order(
        self,
        catalogue: Catalogue,
        vectors: torch.Tensor,
        items: torch.Tensor,
        scores: torch.Tensor,
        k: int,
        *,
        pins: Mapping[int, int],
        draw: str,
    ) -> Order:
        """Makes a list of k of C candidates.

        Args:
            catalogue: of M items, posted ones included.
            vectors: of the items, unit length, float32 [M, D].
            items: rows of the candidates, int64 [C].
            scores: of the candidates, 0 or more, float32 [C].
            k: items wanted.
            pins: rows by their places, from 0; those that are no candidates do not count.
            draw: the same text, the same draws.
        """
        rules, rows = self.file.current(), items.numpy()
        for boost in rules.boosts:
            hit = catalogue.matching(boost.where)[items]
            scores = torch.where(hit, scores * boost.factor + boost.add, scores)
        weights = rules.objectives.items()
        total = np.sum(
            [weight * standardised(self._values(name, catalogue, rows, scores)) for name, weight in weights], axis=0
        )
        new = np.zeros(len(rows), bool)
        if rules.exposure is not None:
            new = seen_within(np.concatenate([self._seen, catalogue.times])[rows], rules.exposure.days)
            total = total + self._exposure.bonus() * new
        found = {place: int(at[0]) for place, row in pins.items() if len(at := np.flatnonzero(rows == row))}
        limits = [Limit(catalogue.values(cap.attribute, rows), cap.most, cap.of) for cap in rules.caps]
        near = vectors[items].numpy() if rules.diversity else None
        listed = greedy(total, k, pins=found, limits=limits, diversity=rules.diversity, vectors=near)
        at, propensity = listed.at, np.ones(len(listed.at))
        if rules.exploration:
            draws = np.random.default_rng(int.from_bytes(draw.encode("utf-8", "surrogatepass")))
            at, propensity = explored(listed, rules.exploration, alike(limits, len(rows)), draws)
        if rules.exposure is not None:
            self._exposure.note(new[at], rules.exposure.target)
        return Order(torch.from_numpy(at), scores, propensity)

    def _values(self, objective: str, catalogue: Catalogue, rows: np.ndarray, scores: torch.Tensor) -> np.ndarray:
        if objective == RELEVANCE:
            return scores.double().numpy()
        if objective != NOVELTY:
            return catalogue.numbers(objective, rows)
        own = rows < len(self._novelty)  # nobody has liked a posted item before
        return np.where(own, self._novelty[np.where(own, rows, 0)], 0.0)
