"""Titles as a generator writes them, and how near they come to the true ones."""

from __future__ import annotations

import torch
from torch.nn import functional

from models.common.jagged import Jagged
from models.generation.language import LanguageModel


@torch.no_grad()
def greedy(model: LanguageModel, prompts: torch.Tensor, lengths: torch.Tensor, *, max_tokens: int) -> Jagged:
    """Returns what a model writes after each of B prompts, taking the likeliest text token until that is `eos`.

    Args:
        model: in evaluation mode.
        prompts: int64 [B, T] tokens, padded on the right.
        lengths: int64 [B], tokens of each, at least one.
        max_tokens: of an answer.

    Returns:
        B lists of tokens, without `eos`, on the CPU.
    """
    from transformers import DynamicCache

    eos, device, (count, width) = model.vocabulary.eos, prompts.device, prompts.shape
    cache, places = DynamicCache(), torch.arange(width + max_tokens, device=device)
    last = model.read(prompts, cache)[torch.arange(count, device=device), lengths - 1]
    visible = (places < lengths[:, None]) | (places >= width)  # the prompt without its padding, then the answer
    written = torch.full((count, max_tokens), eos, device=device)
    for step in range(max_tokens):
        if step:
            now = visible[:, None, None, : width + step]
            last = model.hidden(written[:, step - 1 : step], (lengths + step - 1)[:, None], now, cache)[:, 0]
        likeliest = model.text_logits(last).argmax(-1)
        ended = (written[:, :step] == eos).any(1)
        written[:, step] = likeliest.masked_fill(ended, eos)
        if (ended | (likeliest == eos)).all():
            break
    written = written.cpu()
    kept = (written == eos).cumsum(1) == 0
    return Jagged(written[kept], functional.pad(kept.sum(1).cumsum(0), (1, 0)))
