"""Fits that start from an earlier one: what of its weights is taken over, and how its codes go on with new items."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from models.generation.vocabulary import Vocabulary
from models.recommenders.next_item import NextItemModel
from models.recommenders.product_quantizer import Quantized
from models.semantic_ids.collaborative import impute

BLOCK_ROWS = 1 << 14  # of new items whose codes are looked for at once


@torch.no_grad()
def take_over(model: NextItemModel, earlier: NextItemModel, rows: torch.Tensor, counts: torch.Tensor) -> bool:
    """Sets the weights of a model of N items to those of an earlier one; tells whether that was possible.

    An item that the earlier model had learned begins with its vector there, and any other as in a fit from scratch.

    Args:
        model: what is to be fitted.
        earlier: on the CPU.
        rows: of the items in the earlier model, int64 [N]; -1 for none.
        counts: how often training chooses each item, int64 [N]; one that it never chooses learns nothing.
    """
    own, given = dict(model.named_parameters()), dict(earlier.named_parameters())
    skipped = {name: int(name in model.tables) for name in own}  # leading dimensions that may differ
    if type(model) is not type(earlier) or own.keys() != given.keys():
        return False
    if any(own[name].shape[at:] != given[name].shape[at:] for name, at in skipped.items()):
        return False
    for name, at in skipped.items():
        if not at:
            own[name].copy_(given[name])
            continue
        known = (rows >= 0) & (counts > 0)
        known &= given[name].any(1)[rows]  # of -1 the last row, which does not count
        own[name][known] = given[name][rows[known]]
    return True


def go_on(earlier: Quantized, rows: torch.Tensor, content: np.ndarray) -> Quantized:
    """Returns the codes of N items under the codewords of an earlier catalogue; an item that was there keeps its codes.

    Where a new item would have stood is told from its content, by a ridge regression on the items that were there: as
    it is of items that nobody has chosen in a fit from scratch. It gets the codewords nearest to that place.

    Args:
        earlier: codes of the earlier catalogue.
        rows: of the items in it, int64 [N]; -1 for none, at least one is there.
        content: of the items, float32 [N, D].
    """
    parts, _, width = earlier.codewords.shape
    known = (rows >= 0).numpy()
    codes = torch.zeros(len(rows), parts, dtype=torch.int64)
    codes[known] = earlier.codes[rows[known]]
    if known.all():
        return Quantized(codes, earlier.codewords)
    places = np.full((len(rows), parts * width), np.nan, np.float32)
    stood = torch.stack([earlier.codewords[part][codes[known, part]] for part in range(parts)], dim=1)
    places[known] = stood.flatten(1).numpy()
    told = torch.from_numpy(impute(places, content)[~known]).view(-1, parts, width)
    nearest = [torch.cdist(block.transpose(0, 1), earlier.codewords).argmin(2).T for block in told.split(BLOCK_ROWS)]
    codes[~known] = torch.cat(nearest)
    return Quantized(codes, earlier.codewords)


def wide_enough(vocabulary: Vocabulary, sizes: tuple[int, ...], *, suffixes: bool) -> Vocabulary | None:
    """Returns an earlier vocabulary, with room for more suffixes; None where its codes are others.

    The level of the suffixes is the last one, so that no token moves.

    Args:
        vocabulary: of an earlier model.
        sizes: codes of each level now; suffixes: whether the last level is that of the suffixes.
    """
    codes = slice(None, -1) if suffixes else slice(None)
    if vocabulary.suffixes != suffixes or vocabulary.sizes[codes] != sizes[codes]:
        return None
    rest = (vocabulary.sid_start, vocabulary.pad, vocabulary.bos, vocabulary.eos, suffixes)
    return Vocabulary(tuple(map(max, vocabulary.sizes, sizes)), vocabulary.text, *rest)


@torch.no_grad()
def take_over_tokens(model: nn.Module, earlier: nn.Module) -> bool:
    """Sets the weights of a language model to those of one with no more tokens; tells whether that was possible."""
    own, given = model.state_dict(), earlier.state_dict()
    if own.keys() != given.keys() or any(own[name].shape[1:] != given[name].shape[1:] for name in own):
        return False
    if any(len(own[name]) < len(given[name]) for name in own if own[name].ndim):
        return False
    for name, value in own.items():
        (value[: len(given[name])] if value.ndim else value).copy_(given[name])
    return True
