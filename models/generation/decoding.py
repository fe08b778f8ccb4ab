"""Constrained beam search: the best items of a catalogue by a language model over their semantic IDs.

An item's score is the sum over levels of the log-softmax over that level's own codes, in float32 and added level by
level, as everywhere in this package. The search walks the trie of the catalogue, so every path that it ends with is an
item, each once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional

from models.common.jagged import Jagged
from models.common.recommender import Recommended, filled_up, top_columns
from models.generation.language import LanguageModel
from models.generation.trie import Trie


class Beams(NamedTuple):
    """What a search has kept for B users, in the order of the paths."""

    items: torch.Tensor  # int64 [B, W], rows of the catalogue
    scores: torch.Tensor  # float32 [B, W], -inf where no item is left
    pruned: torch.Tensor  # float32 [B], which no other item's score is above; -inf where there is no other

    def best(self, k: int) -> Recommended:
        """Returns the k best items of every user, and which lists are exact."""
        return ranked(self.items, self.scores, self.pruned, k)


@torch.no_grad()
def search(
    model: LanguageModel,
    trie: Trie,
    prompts: torch.Tensor,
    lengths: torch.Tensor,
    *,
    beams: int,
    banned: Sequence[Jagged | None] = (None,),
    allowed: torch.Tensor | None = None,
) -> list[Beams]:
    """Returns the best items that searches with so many beams, each with other banned items, find after every prompt.

    The searches walk side by side: each keeps its own beams, as if it were alone, and what several keep is computed
    once. One forward pass reads the prompts, one per level after the first the beams. The beams of a user are further
    positions of one sequence, told apart by the attention mask: each sees the prompt, its ancestors and itself (tree
    attention: Miao et al., "SpecInfer", ASPLOS 2024). So they share the prompt's keys and values, and nothing is
    copied when beams are dropped.

    As log-probabilities are at most 0, no item below a pruned prefix has a higher score than that.

    Args:
        model: in evaluation mode.
        trie: on the model's device.
        prompts: int64 [B, T] tokens, padded on the right.
        lengths: int64 [B], tokens of each, at least one.
        beams: prefixes that a search keeps at every level; as many as there are items make it exhaustive.
        banned: of every search: item rows that a user must not get, in any order; on any device, as `allowed`.
        allowed: bool [N], items that anybody may get; all where it is None.
    """
    from transformers import DynamicCache

    device, (users, width) = prompts.device, prompts.shape
    if not users:  # transformers cannot reshape nothing
        nothing = torch.empty(0, device=device)
        return [Beams(prompts.new_empty(0, 0), nothing.view(0, 0), nothing) for _ in banned]
    left = [_Left(trie, users, each, allowed) for each in banned]
    user, places = torch.arange(users, device=device)[:, None], torch.arange(width, device=device)
    cache = DynamicCache()
    hidden = model.read(prompts, cache)[user, lengths[:, None] - 1]
    visible = (places < lengths[:, None])[:, None]  # bool [B, beams, positions so far]
    nodes = torch.zeros(users, 1, dtype=torch.int64, device=device)
    scores = [torch.zeros(users, 1, device=device) for _ in banned]  # -inf of what a search does not keep
    pruned = [torch.full((users,), -torch.inf, device=device) for _ in banned]  # the best of the prefixes it dropped
    for level in range(len(trie.sizes)):
        log_probs = model.level_logits(hidden, level).log_softmax(-1)
        below, parents, totals = _expand(trie, level, nodes, torch.stack(scores).amax(0), log_probs)
        kept = []
        for at, has_items in enumerate(left):
            gone = (scores[at].gather(1, parents) == -torch.inf) | ~has_items(level, below)
            own = totals.masked_fill(gone, -torch.inf)
            columns, dropped = top_columns(own, beams)
            kept.append(columns)
            scores[at] = torch.full_like(own, -torch.inf).scatter(1, columns, own.gather(1, columns))
            pruned[at] = pruned[at].maximum(dropped)
        columns, missing = _union(kept)
        nodes, parents = below.gather(1, columns), parents.gather(1, columns)
        scores = [each.gather(1, columns).masked_fill(missing, -torch.inf) for each in scores]
        if level + 1 < len(trie.sizes):
            itself = torch.eye(nodes.shape[1], dtype=torch.bool, device=device).expand(users, -1, -1)
            visible = torch.cat([visible[user, parents], itself], dim=2)
            tokens = model.vocabulary.start(level) + trie.codes[level][nodes]
            hidden = model.hidden(tokens, (lengths + level)[:, None].expand_as(tokens), visible[:, None], cache)
    return [Beams(trie.items[nodes], *each) for each in zip(scores, pruned, strict=True)]


class _Left:
    """Which nodes have items left for which user."""

    def __init__(self, trie: Trie, users: int, banned: Jagged | None, allowed: torch.Tensor | None) -> None:
        self._spans = trie.spans
        device = trie.items.device
        open_ = torch.ones_like(trie.items, dtype=torch.bool) if allowed is None else allowed.to(device)[trie.items]
        self._before = functional.pad(open_.cumsum(0), (1, 0))  # items that anybody may get before every place
        self._user = torch.arange(users, device=device)[:, None] * (len(trie.items) + 1)
        self._banned = trie.items.new_empty(0)  # (user, place) as one ascending number, none twice
        if banned is not None:
            ranks = trie.ranks[banned.values.to(device)]
            pairs = torch.repeat_interleave(self._user[:, 0], banned.offsets.diff().to(device)) + ranks
            self._banned = torch.unique(pairs[open_[ranks]])

    def __call__(self, level: int, nodes: torch.Tensor) -> torch.Tensor:
        """Whether a child that is added at `level`, int64 [B, W], has any: bool [B, W]."""
        start, end = self._spans[level][nodes], self._spans[level][nodes + 1]
        gone = torch.searchsorted(self._banned, self._user + end) - torch.searchsorted(self._banned, self._user + start)
        return self._before[end] - self._before[start] > gone


def _expand(
    trie: Trie, level: int, nodes: torch.Tensor, scores: torch.Tensor, log_probs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the children of the beams in the order of their paths, their parents and their scores, each [B, W].

    Beams [B, K] are in the order of their paths; those of score -inf count as childless. Places beyond a user's last
    child have the score -inf.
    """
    first = trie.children[level][nodes]
    counts = (trie.children[level][nodes + 1] - first).masked_fill(scores == -torch.inf, 0)
    ends = counts.cumsum(1)
    width = max(1, int(ends[:, -1].max()))
    places = torch.arange(width, device=nodes.device).repeat(len(nodes), 1)
    parents = torch.searchsorted(ends, places, right=True).clamp_max_(nodes.shape[1] - 1)
    missing = places >= ends[:, -1:]
    below = (places + (first - ends + counts).gather(1, parents)).masked_fill_(missing, 0)
    steps = log_probs.flatten(1).gather(1, parents * trie.sizes[level] + trie.codes[level][below])
    return below, parents, (scores.gather(1, parents) + steps).masked_fill_(missing, -torch.inf)


def _union(columns: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the columns that are in any of some lists, ascending, int64 [B, W], and where one is missing, bool."""
    every = torch.cat(list(columns), dim=1).sort(dim=1).values
    again = functional.pad(every[:, 1:] == every[:, :-1], (1, 0))
    missing, order = again.sort(dim=1, stable=True)
    width = int((~again).sum(1).max())
    return every.gather(1, order)[:, :width], missing[:, :width]


def ranked(items: torch.Tensor, scores: torch.Tensor, bound: torch.Tensor, k: int) -> Recommended:
    """Returns the k best of some items by their scores, [B, W]; of equal ones the first.

    Args:
        bound: float [B], which no other item's score is above, -inf where there is no other. Where it is below that of
            the k-th item, the k items are certainly the best of all: the list is exact.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    found = filled_up(items.gather(1, order), scores.gather(1, order), k=k)
    return found._replace(exact=(bound == -torch.inf) | (bound < found.scores[:, -1]))
