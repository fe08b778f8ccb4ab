"""References for the decoder: transformers' beam search, and searches simple enough to be evidently correct."""

from __future__ import annotations

import numpy as np
import torch

from models.common.recommender import Recommended
from models.generation.language import LanguageModel

CHUNK = 512  # sequences of a forward pass
Path = tuple[int, ...]


class TransformersSearch:
    """Beam search by transformers' `generate`, constrained to the catalogue's SIDs by a dict of prefixes."""

    def __init__(self, model: LanguageModel, paths: torch.Tensor) -> None:
        self._model, self._levels = model, paths.shape[1]
        tokens = list(map(tuple, model.vocabulary.sid_tokens(paths).tolist()))
        self._items, self._next = {path: row for row, path in enumerate(tokens)}, children(tokens)

    def __call__(self, prompts: torch.Tensor, *, beams: int, k: int) -> Recommended:
        """Returns the k best items after every prompt, int64 [B, T], all of one length."""
        from transformers import LogitsProcessorList, PrefixConstrainedLogitsProcessor

        width, vocabulary = prompts.shape[1], self._model.vocabulary

        def allowed(_: int, tokens: torch.Tensor) -> list[int]:
            return self._next[tuple(tokens[width:].tolist())]

        def normalise(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            level = tokens.shape[1] - width
            codes = slice(vocabulary.start(level), vocabulary.start(level + 1))
            scores[:, codes] = scores[:, codes].log_softmax(-1)
            return scores

        # The argument `prefix_allowed_tokens_fn` would make this same processor but put it before ours, which has to
        # see all codes of the level.
        constrained = PrefixConstrainedLogitsProcessor(allowed, beams)
        found = self._model.backbone.generate(  # type: ignore[operator]
            prompts,
            attention_mask=torch.ones_like(prompts),
            num_beams=beams,
            num_return_sequences=k,
            max_new_tokens=self._levels,
            length_penalty=0.0,
            do_sample=False,
            logits_processor=LogitsProcessorList([normalise, constrained]),
            return_dict_in_generate=True,
            output_scores=True,
        )
        items = [self._items[tuple(path)] for path in found.sequences[:, width:].tolist()]
        return Recommended(torch.tensor(items).view(-1, k), found.sequences_scores.view(-1, k))


def children(paths: list[Path]) -> dict[Path, list[int]]:
    """Returns the codes that may follow every proper prefix of the SIDs, ascending."""
    found: dict[Path, list[int]] = {}
    for prefix, code in sorted({(path[:level], path[level]) for path in paths for level in range(len(path))}):
        found.setdefault(prefix, []).append(code)
    return found


@torch.no_grad()
def item_scores(model: LanguageModel, paths: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """Returns the score of every item after one prompt, float32 [N], from one full sequence per item without a cache.

    Args:
        paths: int64 [N, L].
        prompt: int64 [T] tokens.
    """
    found = []
    for chunk in paths.split(CHUNK):
        hidden = _hidden(model, prompt, chunk[:, :-1])
        score = torch.zeros(len(chunk))
        for level, codes in enumerate(chunk.T):
            log_probs = model.level_logits(hidden[:, len(prompt) - 1 + level], level).log_softmax(-1)
            score = score + log_probs.gather(1, codes[:, None])[:, 0]
        found.append(score)
    return torch.cat(found)


@torch.no_grad()
def plain_beam_search(model: LanguageModel, paths: torch.Tensor, prompt: torch.Tensor, *, beams: int) -> list[Path]:
    """Returns the SIDs of a beam search, best first, ties in ascending order; a plain loop over prefixes."""
    following = children(list(map(tuple, paths.tolist())))
    kept: list[tuple[np.float32, Path]] = [(np.float32(0), ())]
    for level in range(paths.shape[1]):
        hidden = _hidden(model, prompt, torch.tensor([prefix for _, prefix in kept], dtype=torch.int64))
        log_probs = model.level_logits(hidden[:, -1], level).log_softmax(-1).numpy()
        longer = [
            (score + log_probs[beam, code], (*prefix, code))
            for beam, (score, prefix) in enumerate(kept)
            for code in following[prefix]
        ]
        kept = sorted(longer, key=lambda one: (-one[0], one[1]))[:beams]
    return [path for _, path in kept]


def _hidden(model: LanguageModel, prompt: torch.Tensor, prefixes: torch.Tensor) -> torch.Tensor:
    """Returns the hidden states of a prompt followed by one of the prefixes, int64 [n, up to L], per row."""
    tokens = torch.cat([prompt.expand(len(prefixes), -1), model.vocabulary.sid_tokens(prefixes).long()], dim=1)
    places = torch.arange(tokens.shape[1])
    causal = (places <= places[:, None]).expand(len(tokens), 1, -1, -1)
    return model.hidden(tokens, places.expand(len(tokens), -1), causal)
