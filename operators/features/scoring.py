"""Fast inference of a ranker: the fields of an item are made once for all, those of a user once per user."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from models.common.growing import Growing
from models.common.jagged import Jagged, filled, newest, sliced
from models.ranking.config import CONTENT, HISTORY, LONG, USER
from models.ranking.ranker import Ranker
from operators.features.ranker_inputs import ItemFeatures, keyed_apart, looked_up

POOLED = 1 << 14  # items that are pooled at a time
PAIRS = 1 << 10  # that are scored at a time, so that what they need stays in the processor's cache


class Scorer:
    """A ranker that learns no more, over the items of a catalogue: it says what the ranker says of their inputs.

    Keeps the fields of every item, float32 [N + 1, F, dim], those at N of "no item", behind which others may follow.
    """

    @torch.inference_mode()
    def __init__(self, ranker: Ranker, items: ItemFeatures) -> None:
        config = ranker.config
        self._ranker, self._items, self._config = ranker, items, config
        single = [feature for feature in ranker.embeddings.features if "." not in feature]
        own = [name for name in single if name in items.lists]
        of_pairs = [LONG + name for name in config.past if LONG + name in single]
        of_users = [name for name in single if name not in {*own, *of_pairs}]
        content = [CONTENT] if config.content_dim else []
        made = [*own, *content, *of_users, *(HISTORY + name for name in content), *of_pairs]
        made += [kind + name for kind in config.histories for name in config.past] if config.history else []
        self._order = torch.tensor([made.index(name) for name in ranker.fields])
        self._past = torch.tensor([own.index(name) for name in config.past], dtype=torch.int64)
        self._own, self._bags = own, ranker.bags(own) if own else None
        self._user_bags, self._pair_bags = (
            ranker.bags(features) if features else None for features in (of_users, of_pairs)
        )
        self._fields = Growing(self._made(items, 0))

    @torch.inference_mode()
    def follow(self, others: ItemFeatures) -> None:
        """Takes others, the first of which it may have already, behind the row that stands for "no item"."""
        self._fields.append(self._made(others, len(self._fields.rows) - len(self._items) - 1)[:-1])
        self._items = self._items.followed(others)

    def _made(self, items: ItemFeatures, first: int) -> torch.Tensor:
        """Returns the fields of items from a row on, and at the end those of "no item"."""
        own, content = self._own, self._config.content_dim > 0
        made = torch.empty(len(items) + 1 - first, len(own) + content, self._config.embedding_dim)
        for fields, start in zip(made.split(POOLED), range(first, len(items) + 1, POOLED), strict=True):
            if self._bags is not None:
                lists = {name: sliced(items.lists[name], start, start + len(fields)) for name in own}
                fields[:, : len(own)] = self._bags(*keyed_apart(lists))
            if content:
                vectors = items.vectors(torch.arange(start, min(start + len(fields), len(items))))
                fields[: len(vectors), -1] = self._ranker.projected(vectors)
        return made

    @torch.inference_mode()
    def logits(
        self,
        *,
        user: torch.Tensor,
        history: Jagged,
        owner: torch.Tensor,
        rows: torch.Tensor,
        dense: torch.Tensor,
        long: Jagged | None = None,
    ) -> torch.Tensor:
        """Logits of M pairs of one of U users and an item, float32 [M].

        Args:
            user: hashes of user ids, int64 [U]; 0 for an unknown user.
            history: rows of the users' last items; [] is a user without a history.
            owner: positions of the pairs' users, int64 [M], ascending.
            rows: rows of the pairs' items, int64 [M].
            dense: of the pairs, float32 [M, n] in the order of `config.dense`, NaN where unknown.
            long: second histories of the pairs, where the ranker reads them.
        """
        if not len(rows):
            return torch.empty(0)
        fields = self._fields.rows[rows]
        parts = [fields, *(part[owner] for part in self._of_users(user, history))]
        if self._pair_bags is not None and long is not None:
            parts.append(self._pair_bags(*keyed_apart(self._items.bagged(LONG, filled(long, len(self._items))))))
        if self._config.history:
            target, counts = fields[:, self._past], owner.bincount(minlength=len(user)).tolist()
            parts.append(self._attended(HISTORY, target, history, counts, 1))
            if self._config.long and long is not None:
                parts.append(self._attended(LONG, target, long, PAIRS, PAIRS))
        both = torch.cat(parts, dim=1)[:, self._order].split(PAIRS), dense.split(PAIRS)
        return torch.cat([self._ranker.logits(*block)[0] for block in zip(*both, strict=True)])

    def _of_users(self, user: torch.Tensor, history: Jagged) -> Iterator[torch.Tensor]:
        """Yields fields of the users, [U, F, dim]."""
        past = filled(history, len(self._items))
        features = {} if self._config.history else self._items.bagged(HISTORY, past)
        if USER in self._config.tables:
            features[USER] = looked_up(Jagged(user, torch.arange(len(user) + 1)), self._config.tables[USER])
        if self._user_bags is not None:
            yield self._user_bags(*keyed_apart(features))
        if self._config.content_dim:
            yield self._ranker.projected(self._items.mean(past)).unsqueeze(1)

    def _attended(
        self, kind: str, targets: torch.Tensor, pasts: Jagged, of: int | list[int], size: int
    ) -> torch.Tensor:
        """Returns the fields of histories, [M, P, dim]; the next `size` of them belong to the next `of` pairs."""
        length = self._config.histories[kind]
        items, lengths = newest(pasts, length=length, fill=len(self._items)).T, pasts.offsets.diff().clamp_max(length)
        found = []
        for target, at, number in zip(targets.split(of), items.split(size), lengths.split(size), strict=True):
            history = self._fields.rows[at[:, : int(number.max())]][:, :, self._past]
            found.append(self._ranker.attended(target, history, number))
        return torch.cat(found)
