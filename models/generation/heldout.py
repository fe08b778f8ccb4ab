"""How well each task is done on what it did not train on: items, and what users chose next.

A held-out item is one of which no task about content saw title, caption and semantic ID together; tasks that recommend
may have shown its title or its semantic ID in a history.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from models.common.jagged import Jagged, gather, padded
from models.common.recommender import Queries
from models.common.seeds import generator, seed_of
from models.evaluation.bootstrap import bootstrap_means, interval
from models.evaluation.lists import ranks, recall
from models.evaluation.text import rouge_l, token_f1
from models.generation.decoding import search
from models.generation.examples import Corpus, documents, prompts
from models.generation.greedy import greedy
from models.generation.language import LanguageModel
from models.generation.tasks import Task
from models.generation.trie import Trie

CHOICE, RESAMPLES, CAPTIONS = 611, 612, 613  # what is drawn, for seeds
BATCH = 32  # prompts that are read at once
CUTS = (1, 10)  # of the lists of items


class Examples(NamedTuple):
    """What one task is asked about."""

    targets: torch.Tensor  # int64 [D], the items that are asked for
    histories: Jagged | None  # of D users before that, none empty; None for a task over items

    @property
    def given(self) -> Jagged | torch.Tensor:
        """What the prompts are about."""
        return self.targets if self.histories is None else self.histories

    def take(self, rows: torch.Tensor) -> Examples:
        """Returns those at rows, int64 [M]."""
        return Examples(self.targets[rows], None if self.histories is None else gather(self.histories, rows))


def choose(corpus: Corpus, task: Task, queries: Queries, *, most: int, seed: int) -> Examples:
    """At most so many of the examples that have what a task reads and writes, by chance, in random order.

    A task over items is asked about those that the corpus holds out, a task over histories about the queries.
    """
    shown, answered = corpus.has(task.inputs), corpus.has([task.target])
    every = Examples(corpus.held_out.nonzero()[:, 0], None)
    fits = shown[every.targets]
    if task.over_histories:
        every = Examples(queries.target, queries.histories)
        values, offsets, _ = queries.histories
        before = functional.pad(shown[values].cumsum(0), (1, 0))
        fits = before[offsets[1:]] > before[offsets[:-1]]
    order = torch.randperm(len(fits), generator=generator(CHOICE, seed))
    return every.take(order[(fits & answered[every.targets])[order]][:most])


def task_losses(
    model: LanguageModel, corpus: Corpus, tasks: Sequence[Task], queries: Queries, *, most: int = 300, seed: int = 0
) -> dict[str, float]:
    """By task, the mean loss of the responses that held-out examples ask for, each in nats per token, as in training.

    Args:
        model: in evaluation mode.
        most: examples of a task.
        seed: of their choice.

    Returns:
        Of the tasks that have an example.
    """
    chosen = {task: choose(corpus, task, queries, most=most, seed=seed) for task in tasks}
    return {
        task.name: float(losses(model, corpus, task, examples).mean())
        for task, examples in chosen.items()
        if len(examples.targets)
    }


def task_scores(
    model: LanguageModel,
    trie: Trie,
    corpus: Corpus,
    tasks: Sequence[Task],
    queries: Queries,
    *,
    most: int = 300,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """By task, how well it is done on held-out examples.

    Args:
        model: in evaluation mode.
        trie: of the whole catalogue, on the model's device.
        most: examples of a task.
        seed: of their choice, of what captions are shuffled to and of the resamples.

    Returns:
        Of every task `examples`, their number, and, if that is not 0, means over them, each beside its interval from
        resampled examples, `loss_interval` and so on:

        * `loss`, in nats per token of the response;
        * of tasks that ask for an item `log_probability`, its score, and `exact@1` and `exact@10`: whether it is the
          first, and among the first ten, of all items by beam search with ten beams;
        * of tasks that ask for a title `rouge_l` and `token_f1` of what greedy decoding writes.

        Tasks that read captions have `shuffled`, the same where each item's caption is another's of the examples, and
        `gain`, what the own captions have over those, paired by example. What does not fall, or in the loss rise,
        was not read from the captions.
    """
    found: dict[str, dict[str, Any]] = {}
    for task in tasks:
        examples = choose(corpus, task, queries, most=most, seed=seed)
        found[task.name] = {"examples": len(examples.targets)}
        if not len(examples.targets):
            continue
        scores = _scores(model, trie, corpus, task, examples)
        found[task.name] |= _summary(scores, seed)
        if "caption" in task.inputs and len(examples.targets) > 1:
            shuffled = _scores(model, trie, _shuffled(corpus, examples.targets, seed), task, examples)
            gain = {name: score - shuffled[name] for name, score in scores.items()}
            found[task.name] |= {"shuffled": _summary(shuffled, seed), "gain": _summary(gain, seed)}
    return found


@torch.no_grad()
def losses(model: LanguageModel, corpus: Corpus, task: Task, examples: Examples) -> torch.Tensor:
    """Returns the loss of each response in nats per token, float32 [D] on the CPU.

    Args:
        model: in evaluation mode.
    """
    device, levels, found = _device(model), corpus.sid_codes.shape[1], []
    for part in _batches(examples):
        written = documents(corpus, task, part.targets, part.histories)
        lengths = written.offsets.diff().to(device)
        tokens = padded(written, length=len(written.values), fill=corpus.vocabulary.pad).to(device)
        count, width = tokens.shape
        places = torch.arange(width, device=device)
        hidden = model.read(tokens)[:, :-1]  # each before the token it predicts
        if task.target == "sid":
            asked = (lengths - 1 - levels)[:, None] + torch.arange(levels, device=device)
            states = hidden[torch.arange(count, device=device)[:, None], asked]
            by_level = [
                functional.cross_entropy(model.level_logits(states[:, level], level), code, reduction="none")
                for level, code in enumerate(corpus.sid_codes[part.targets].to(device).T)
            ]
            found.append(torch.stack(by_level).mean(0).cpu())
            continue
        counts = corpus.titles.offsets.diff()[part.targets].to(device) + 1  # and `eos`
        asked = (places[1:] >= (lengths - counts)[:, None]) & (places[1:] < lengths[:, None])
        each = functional.cross_entropy(model.text_logits(hidden[asked]), tokens[:, 1:][asked], reduction="none")
        total = torch.zeros(count, device=device).index_add_(0, asked.nonzero()[:, 0], each)
        found.append((total / counts).cpu())
    return torch.cat(found)


def _scores(model: LanguageModel, trie: Trie, corpus: Corpus, task: Task, examples: Examples) -> dict[str, np.ndarray]:
    """Returns the scores of every example by name, float64 [D]."""
    loss = losses(model, corpus, task, examples).double().numpy()
    parts = list(_batches(examples))
    device = _device(model)
    asked = [[tensor.to(device) for tensor in prompts(corpus, task, part.given)] for part in parts]
    if task.target == "sid":
        most = max(CUTS)
        items = [search(model, trie, *prompt, beams=most)[0].best(most).items.cpu() for prompt in asked]
        rank = ranks(torch.cat(items).numpy(), examples.targets.numpy())
        exact = {f"exact@{at}": recall(rank, at) for at in CUTS}
        return {"loss": loss, "log_probability": -loss * corpus.sid_codes.shape[1], **exact}
    titles = gather(corpus.titles, examples.targets)
    longest = int(titles.offsets.diff().max())
    answers = [text for prompt in asked for text in _texts(model, greedy(model, *prompt, max_tokens=longest))]
    pairs = list(zip(answers, _texts(model, titles), strict=True))
    return {
        "loss": loss,
        "rouge_l": np.array([rouge_l(*pair) for pair in pairs]),
        "token_f1": np.array([token_f1(*pair) for pair in pairs]),
    }


def _summary(scores: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Returns the mean of every score and its interval."""
    samples = bootstrap_means(np.arange(len(scores["loss"])), scores, seed=seed_of(RESAMPLES, seed))
    return {
        key: value
        for name, score in scores.items()
        for key, value in ((name, float(score.mean())), (f"{name}_interval", interval(samples[name])))
    }


def _shuffled(corpus: Corpus, items: torch.Tensor, seed: int) -> Corpus:
    """The corpus with the captions of some items passed on round a random circle, so that each has another's."""
    circle = items[torch.randperm(len(items), generator=generator(CAPTIONS, seed))]
    source = torch.arange(len(corpus.sid_codes))
    source[circle] = circle.roll(1)
    return replace(corpus, captions=gather(corpus.captions, source))


def _texts(model: LanguageModel, tokens: Jagged) -> list[str]:
    return [model.vocabulary.decode(part) for part in tokens.values.split(tokens.offsets.diff().tolist())]


def _batches(examples: Examples) -> Iterator[Examples]:
    for rows in torch.arange(len(examples.targets)).split(BATCH):
        yield examples.take(rows)


def _device(model: LanguageModel) -> torch.device:
    return next(model.parameters()).device
