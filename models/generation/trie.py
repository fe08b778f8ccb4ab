"""The semantic IDs of a catalogue as a trie of arrays."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from models.semantic_ids.prefixes import number_prefixes
from storage.errors import UserError


@dataclass(frozen=True)
class Trie:
    """Paths of N items, one code per level.

    The nodes of a depth are numbered in lexicographic order of their prefixes: the root is node 0 of depth 0, and node
    n of depth L the n-th item in the order of the paths. So the children of a node are a range of the next depth's
    nodes, and the items below it a range of the sorted items (compressed sparse rows).
    """

    sizes: tuple[int, ...]  # codes per level
    items: torch.Tensor  # int64 [N], rows of the catalogue in the order of their paths
    ranks: torch.Tensor  # int64 [N], places of the catalogue's rows in that order
    codes: tuple[torch.Tensor, ...]  # int64 per depth from 1, the last code of every node
    children: tuple[torch.Tensor, ...]  # int64 [nodes + 1] per depth from 0: offsets into the next depth's nodes
    spans: tuple[torch.Tensor, ...]  # int64 [nodes + 1] per depth from 1: offsets into `items`

    @classmethod
    def build(cls, sid_codes: torch.Tensor, sizes: Sequence[int]) -> Trie:
        """Returns the trie of a catalogue.

        Args:
            sid_codes: int64 [N, L], as from `models.generation.vocabulary.sid_codes`.
            sizes: codes of every level.

        Raises:
            UserError: two items share a path.
        """
        prefixes = number_prefixes(sid_codes)
        ranks = prefixes[-1]
        items = ranks.argsort(stable=True)
        twice = ranks[items].diff().eq(0).nonzero()
        if len(twice):
            first, second = items[int(twice[0]) :][:2].tolist()
            raise UserError(
                f"Rows {first} and {second} of the catalogue share one semantic ID, so no decoder tells them apart: "
                "run the stage quantize again with deduplication suffixes."
            )
        offsets = [_offsets(numbers[items]) for numbers in prefixes]
        return cls(
            sizes=tuple(sizes),
            items=items,
            ranks=ranks,
            codes=tuple(codes[items][span[:-1]] for codes, span in zip(sid_codes.T, offsets[1:], strict=True)),
            children=tuple(torch.searchsorted(below, above) for above, below in itertools.pairwise(offsets)),
            spans=tuple(offsets[1:]),
        )

    def to(self, device: torch.device | str) -> Trie:
        """Returns the trie on a device."""

        levels = ([part.to(device) for part in parts] for parts in (self.codes, self.children, self.spans))
        return Trie(self.sizes, self.items.to(device), self.ranks.to(device), *map(tuple, levels))


def _offsets(numbers: torch.Tensor) -> torch.Tensor:
    """Tells where each of the numbers 0, 1, … starts in their sorted list, and its length."""
    return functional.pad(numbers.bincount().cumsum(0), (1, 0))
