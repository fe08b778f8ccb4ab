"""Compares constrained decoding with transformers' beam search: users per second, and exactness of the results.

python -m benchmarks.decode --data DIR --out FILE [--json] [--rounds 3] [--models 100]

Speed: Beauty's items with random semantic IDs (3 levels of 256 codes and the deduplication suffix, because quality does
not matter here), histories of 20 items, the backbone `tiny` with random weights, 50 beams. `transformers` is `generate`
with the same weights and scores, see `decode_peers`. Both decode the same users in the same batches, alternating; the
figures are medians over the rounds. `same_items` is the share of users with the same ten items in the same order.

Exactness: many random models, with a history over 2,000 items. With as many beams as items, the result must be the
order by the score of every item; with 50 beams, it must be that of a plain beam search. These models compute in
float64, so that the order of summation does not affect the float32 scores. Every second model rounds its logits to
integers, so that items have equal scores: `with_ties` counts the models with such items among the best 50. `certified`
is the share of searches with 50 beams that proved that no other item belongs among the best ten.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.decode_peers import TransformersSearch, item_scores, plain_beam_search
from benchmarks.machine import machine
from models.common.llama import Tiny
from models.common.recommender import Recommended
from models.generation.backbones import build
from models.generation.decoding import search
from models.generation.language import LanguageModel
from models.generation.trie import Trie
from models.generation.vocabulary import Vocabulary, sid_codes
from models.semantic_ids.suffixes import allocate_suffixes

USERS, HISTORY, BEAMS, TOP = 64, 20, 50, 10
SMALL_ITEMS, SMALL_SIZES = 2_000, (16, 16, 16)
SMALL = Tiny(layers=2, dim=32, heads=2, mlp=64)
SPREAD = 0.3  # standard deviation of random weights; with the usual 0.02 all items would have nearly the same score


class Coarse(LanguageModel):
    """A model whose logits are integers."""

    def level_logits(self, hidden: torch.Tensor, level: int) -> torch.Tensor:
        """Returns the rounded logits of `LanguageModel.level_logits`."""
        return super().level_logits(hidden, level).round()


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder with items.tsv and sequences.txt")
    parser.add_argument("--rounds", type=int, default=3, help="in which the two decoders take turns")
    parser.add_argument("--models", type=int, default=100, help="drawn models whose results are checked")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="file for the JSON object, beside stdout")
    parser.add_argument("--json", action="store_true", help="nothing but the JSON object on stdout")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    say = (lambda line: None) if arguments.json else (lambda line: print(line, file=sys.stderr, flush=True))
    result = {**machine(), "threads": arguments.threads}
    result |= speed(arguments.data, arguments.rounds, say) | exactness(arguments.models, say)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


def speed(data: Path, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures the users per second of both decoders, and whether they return the same items."""
    items, histories = read(data)
    catalogue, sizes = draw_paths(items, (256, 256, 256), seed=0)
    model = draw_model(LanguageModel, Tiny(), sizes, seed=0)
    prompts = prompts_of(model.vocabulary, catalogue, histories)
    lengths = torch.full((len(prompts),), prompts.shape[1])
    trie, theirs = Trie.build(catalogue, sizes), TransformersSearch(model, catalogue)
    variants: dict[str, Callable[[], Any]] = {
        "ours": lambda: search(model, trie, prompts, lengths, beams=BEAMS)[0].best(TOP),
        "transformers": lambda: theirs(prompts, beams=BEAMS, k=TOP),
    }
    found = {name: variant() for name, variant in variants.items()}  # the first calls warm up
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds):
        for name, variant in variants.items():
            began = time.perf_counter()
            variant()
            seconds[name].append(time.perf_counter() - began)
            say(f"round {turn}: {name} {seconds[name][-1]:.3f} s")
    rates = {name: USERS / statistics.median(taken) for name, taken in seconds.items()}
    ratios = [slow / fast for fast, slow in zip(seconds["ours"], seconds["transformers"], strict=True)]
    return {
        "items": items,
        "users": USERS,
        "prompt_tokens": prompts.shape[1],
        "beams": BEAMS,
        "users_per_second": round(rates["ours"], 2),
        "transformers_users_per_second": round(rates["transformers"], 2),
        "speedup": round(statistics.median(ratios), 2),
        "speedup_range": [round(min(ratios), 2), round(max(ratios), 2)],
        **agreement(found["ours"].items, found["ours"].scores, found["transformers"]),
    }


def agreement(items: torch.Tensor, scores: torch.Tensor, other: Recommended) -> dict[str, float]:
    """Returns the share of users with the same list, and the largest difference of scores."""
    same = (items == other.items).all(1).double().mean()
    return {"same_items": float(same), "largest_score_difference": float((scores - other.scores).abs().max())}


def exactness(models: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Counts the results equal to brute force and to a plain beam search, and the certified ones."""
    exhaustive, same, ties, certified = 0, 0, 0, 0
    for seed in range(models):
        catalogue, sizes = draw_paths(SMALL_ITEMS, SMALL_SIZES, seed=seed)
        model = draw_model(Coarse if seed % 2 else LanguageModel, SMALL, sizes, seed=seed).double()
        history = np.random.default_rng((1, seed)).integers(SMALL_ITEMS, size=(1, 1 + seed % HISTORY))
        prompt = prompts_of(model.vocabulary, catalogue, history)
        trie, lengths = Trie.build(catalogue, sizes), torch.tensor([prompt.shape[1]])
        every = search(model, trie, prompt, lengths, beams=SMALL_ITEMS)[0].best(SMALL_ITEMS)
        scores = item_scores(model, catalogue, prompt[0])
        in_order = trie.items[scores[trie.items].argsort(descending=True, stable=True)]
        exhaustive += torch.equal(every.items[0], in_order) and torch.equal(every.scores[0], scores[in_order])
        some = search(model, trie, prompt, lengths, beams=BEAMS)[0].best(BEAMS)
        plain = plain_beam_search(model, catalogue, prompt[0], beams=BEAMS)
        same += list(map(tuple, catalogue[some.items[0]].tolist())) == plain
        ties += int((some.scores[0].diff() == 0).any())
        best = search(model, trie, prompt, lengths, beams=BEAMS)[0].best(TOP)
        certified += int(best.exact is not None and best.exact[0])
        say(f"model {seed}: brute force {exhaustive}, beam search {same} of {seed + 1}")
    return {
        "exact": exhaustive == same == models,
        "models": models,
        "equal_to_brute_force": exhaustive,
        "equal_to_plain_beam_search": same,
        "with_ties": ties,
        "certified": certified / models,
    }


def read(data: Path) -> tuple[int, np.ndarray]:
    """Reads the number of items, and the last items of the first users with enough of them, int64 [USERS, HISTORY]."""
    names = [line.split("\t")[0] for line in (data / "items.tsv").read_text(encoding="utf-8").splitlines()]
    row = {name: place for place, name in enumerate(names)}
    lines = (data / "sequences.txt").read_text(encoding="utf-8").splitlines()
    long = [items[-HISTORY:] for _, *items in map(str.split, lines) if len(items) >= HISTORY]
    return len(names), np.array([[row[item] for item in items] for items in long[:USERS]])


def draw_paths(items: int, sizes: tuple[int, ...], *, seed: int) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Draws SIDs with unevenly used codes and with collisions, int64 [items, L], and returns them with level sizes."""
    codes = (np.random.default_rng(seed).random((items, len(sizes))) ** 2 * sizes).astype(np.int32)
    names = [str(item) for item in range(items)]
    suffixes = allocate_suffixes(names, codes, np.arange(items, dtype=np.uint64))
    found, used = sid_codes(np.concatenate([codes, suffixes[:, None]], axis=1), sizes)
    return torch.from_numpy(found), used


def draw_model(kind: type[LanguageModel], settings: Tiny, sizes: tuple[int, ...], *, seed: int) -> LanguageModel:
    """Returns a model with widely spread random weights, in evaluation mode."""
    vocabulary = Vocabulary.sequence_only(sizes)
    model = kind(build(settings, vocabulary), vocabulary)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, SPREAD, generator=generator)
    return model.eval()


def prompts_of(vocabulary: Vocabulary, catalogue: torch.Tensor, histories: np.ndarray) -> torch.Tensor:
    """Returns histories of one length, item rows [B, H], as tokens int64 [B, 1 + H * L]."""
    tokens = vocabulary.sid_tokens(catalogue[torch.from_numpy(histories)]).flatten(1)
    return torch.nn.functional.pad(tokens, (1, 0), value=vocabulary.bos)


if __name__ == "__main__":
    main()
