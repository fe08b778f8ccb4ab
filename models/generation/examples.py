"""What there is to learn from: documents of tasks over items and histories, for training and for decoding alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from models.common.jagged import Jagged, chained, chosen, gather, joined, last, ranges, repeated
from models.common.seeds import generator
from models.generation.tasks import Task
from models.generation.vocabulary import Vocabulary
from storage.errors import UserError

DRAW = 21  # what is drawn
LINE = "\n-"  # before each title of a history


@dataclass(frozen=True)
class Corpus:
    """What documents are made of; item rows are those of the catalogue, N in all.

    Attributes:
        sid_codes: int64 [N, L'], see `models.generation.vocabulary.sid_codes`.
        titles, captions: tokens of every item, none where it has none; see `item_texts`.
        sequences: item rows of each user's training history, oldest first.
        held_out: bool [N], items that the tasks over items do not train on.
        history: items that a prompt shows at most, the last ones.
        max_text: tokens of a title or caption, at most.
        tokens_per_row: of a prompt and what follows it, at most: histories show as many of their last items as fit.
    """

    vocabulary: Vocabulary
    sid_codes: torch.Tensor
    titles: Jagged
    captions: Jagged
    sequences: Jagged
    held_out: torch.Tensor
    history: int = 20
    max_text: int = 32
    tokens_per_row: int = 128

    def has(self, names: Iterable[str]) -> torch.Tensor:
        """Items that have all of some placeholders of prompts, bool [N]; a semantic ID is what every item has."""
        found = torch.ones(len(self.sid_codes), dtype=torch.bool)
        for name, texts in (("title", self.titles), ("titles", self.titles), ("caption", self.captions)):
            if name in names:
                found &= texts.offsets.diff() > 0
        return found


def item_texts(vocabulary: Vocabulary, texts: Sequence[str | None], *, max_tokens: int) -> Jagged:
    """Texts of items as they stand inside a sentence: a blank before, on one line. No tokens where there is none."""
    lines = [" ".join((text or "").split()) for text in texts]
    present = [index for index, line in enumerate(lines) if line]
    if not present:
        return Jagged(torch.empty(0, dtype=torch.int64), torch.zeros(len(texts) + 1, dtype=torch.int64))
    found = vocabulary.encode([" " + lines[index] for index in present], max_tokens=max_tokens)
    lengths = torch.zeros(len(texts) + 1, dtype=torch.int64)
    lengths[torch.tensor(present) + 1] = found.offsets.diff()
    return Jagged(found.values, lengths.cumsum(0))


def prompts(corpus: Corpus, task: Task, given: Jagged | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts to decode from.

    Args:
        given: histories of B users for a task over histories, else B items, int64 [B].

    Returns:
        Tokens, int64 [B, T], padded on the right, and their lengths, int64 [B].
    """
    found = _prompts(corpus, task, given)
    lengths = found.offsets.diff()
    parts = found.values.split(lengths.tolist())
    return pad_sequence(list(parts), batch_first=True, padding_value=corpus.vocabulary.pad), lengths


def documents(corpus: Corpus, task: Task, targets: torch.Tensor, histories: Jagged | None = None) -> Jagged:
    """Prompts and what follows them, to train on; see `models.generation.packing.pack`.

    Args:
        targets: items that are asked for, int64 [D].
        histories: of D users before that, none empty, for a task over histories.
    """
    prompt = _prompts(corpus, task, targets if histories is None else histories)
    weights = torch.zeros(len(prompt.values))
    if task.every_position:
        levels = corpus.sid_codes.shape[1]
        position = torch.arange(len(weights)) - prompt.offsets[:-1].repeat_interleave(prompt.offsets.diff())
        first = _text_tokens(corpus, task) + levels  # behind `bos`, the text and the first item all are answers
        weights[position > first] = 1 / levels
    response = _shown(corpus, task.target, targets)
    if task.target == "title":
        response = joined([response, repeated(torch.tensor([corpus.vocabulary.eos]), len(targets))])
    lengths = response.offsets.diff()
    return joined(
        [prompt._replace(weights=weights), response._replace(weights=(1 / lengths).repeat_interleave(lengths))]
    )


class Sampler:
    """Draws what a step trains on: a task, then one of its examples, which all have the same chance.

    An example is an item that was not held out, or an item of a training history behind at least one that the prompt
    can show. Of a task that answers at every position it is the end of a window of items, one more than a prompt shows:
    cut from the end of a history, these ask for each of its items but the first once.

    Attributes:
        counts: examples of each task.
    """

    def __init__(self, corpus: Corpus, tasks: Sequence[Task], *, seed: int) -> None:
        """Finds the examples.

        Raises:
            UserError: a task has none, or needs longer rows.
        """
        self.corpus, self.tasks, self.seed = corpus, tuple(tasks), seed
        self._examples = [examples(corpus, task) for task in tasks]  # items, or places of targets in the sequences
        self.counts = tuple(map(len, self._examples))
        for task, count in zip(tasks, self.counts, strict=True):
            least = 1 + _text_tokens(corpus, task) + _answer(corpus, task)
            least += sum(_longest(corpus, name) for name in task.inputs)
            if corpus.tokens_per_row < least:
                rows = f"Rows of {corpus.tokens_per_row} tokens have no room for"
                what = "two items" if task.every_position else f"the text, an item and an answer of task {task.name}"
                raise UserError(f"{rows} {what}: raise tokens_per_row to {least}.")
            if not count:
                needs = " and ".join(sorted(task.columns)) or "history of two items"
                raise UserError(f"There is nothing to learn task {task.name} from (no {needs}): leave it out of tasks.")

    def draw(
        self, step: int, *, documents: int, odds: Sequence[float] | None = None, rank: int = 0, workers: int = 1
    ) -> Jagged:
        """A worker's share of a step's documents, which seed and step decide; dealt out by turns.

        Args:
            documents: of the step, for all workers together, at least one for each.
            odds: of each task; even where it is None.
        """
        random = generator(DRAW, self.seed, step)
        weights = torch.ones(len(self.tasks)) if odds is None else torch.tensor(odds, dtype=torch.float32)
        numbers = torch.multinomial(weights, documents, replacement=True, generator=random)[rank::workers]
        places = torch.rand(documents, dtype=torch.float64, generator=random)[rank::workers]
        drawn = []
        for number in numbers.unique().tolist():
            examples = self._examples[number]
            at = (places[numbers == number] * len(examples)).long()
            drawn.append(self._documents(self.tasks[number], examples[at]))
        return chained(drawn)

    def _documents(self, task: Task, examples: torch.Tensor) -> Jagged:
        if not task.over_histories:
            return documents(self.corpus, task, examples)
        values, offsets, _ = self.corpus.sequences
        starts = offsets[torch.searchsorted(offsets, examples, right=True) - 1]
        return documents(self.corpus, task, values[examples], ranges(values, starts, examples))


def examples(corpus: Corpus, task: Task) -> torch.Tensor:
    """Returns what a task can be learned from: items, or places of targets in the sequences' values; int64."""
    target, given = corpus.has([task.target]), corpus.has(task.inputs)
    if not task.over_histories:
        return (target & given & ~corpus.held_out).nonzero()[:, 0]
    values, offsets, _ = corpus.sequences
    lengths = offsets.diff()
    before = functional.pad(given[values].cumsum(0), (1, 0))  # of all sequences together
    fits = target[values] & (before[:-1] > before[offsets[:-1]].repeat_interleave(lengths))
    if task.every_position:
        final = (offsets[1:] - 1).repeat_interleave(lengths)
        fits &= (final - torch.arange(len(values))) % max(items_shown(corpus, task), 1) == 0
    return fits.nonzero()[:, 0]


def items_shown(corpus: Corpus, task: Task) -> int:
    """Returns how many items of a history a prompt shows at most.

    A task that answers at every position shows equally many to all, for which a row has room beside the next item.
    """
    if not task.every_position:
        return corpus.history
    room = corpus.tokens_per_row - 1 - _text_tokens(corpus, task)
    return min(corpus.history, room // corpus.sid_codes.shape[1] - 1)


def _prompts(corpus: Corpus, task: Task, given: Jagged | torch.Tensor) -> Jagged:
    if isinstance(given, Jagged):
        given = last(chosen(given, corpus.has(task.inputs)[given.values]), items_shown(corpus, task))
        given = given if task.every_position else _fitting(corpus, task, given)
        count = len(given.offsets) - 1
    else:
        count = len(given)
    parts = [repeated(torch.tensor([corpus.vocabulary.bos]), count)]
    for text, name in _pieces(task):
        if text:
            parts.append(repeated(corpus.vocabulary.phrase(text), count))
        if name is not None:
            parts.append(_shown(corpus, name, given))
    return joined(parts)


def _pieces(task: Task) -> list[tuple[str, str | None]]:
    """As `Task.pieces`; a blank before a placeholder is the first token's of what is shown there."""
    return [(text if name is None else text.rstrip(" "), name) for text, name in task.pieces]


def _text_tokens(corpus: Corpus, task: Task) -> int:
    return sum(len(corpus.vocabulary.phrase(text)) for text, _ in _pieces(task) if text)


def _answer(corpus: Corpus, task: Task) -> int:
    """Returns the tokens of the longest answer; of titles behind histories those that they may have."""
    if task.target == "title":
        return 1 + (corpus.max_text if task.over_histories else _longest(corpus, "title"))
    return corpus.sid_codes.shape[1]


def _longest(corpus: Corpus, name: str) -> int:
    """Returns the tokens that stand for a placeholder, of the longest item."""
    if name in ("sid", "sids"):
        return corpus.sid_codes.shape[1]
    lengths = (corpus.captions if name == "caption" else corpus.titles).offsets.diff()
    return int(lengths.max()) + (len(corpus.vocabulary.phrase(LINE)) if name == "titles" else 0)


def _fitting(corpus: Corpus, task: Task, histories: Jagged) -> Jagged:
    """The last items of each history that a row has room for beside the prompt's text and the longest answer."""
    room = corpus.tokens_per_row - 1 - _answer(corpus, task) - _text_tokens(corpus, task)
    cost = torch.zeros(len(histories.values), dtype=torch.int64)
    for name in task.inputs:
        cost += _shown(corpus, name, Jagged(histories.values, torch.arange(len(cost) + 1))).offsets.diff()
    before = functional.pad(cost.cumsum(0), (1, 0))
    to_end = before[histories.offsets[1:]].repeat_interleave(histories.offsets.diff()) - before[:-1]
    return chosen(histories, to_end <= room)


def _shown(corpus: Corpus, name: str, given: Jagged | torch.Tensor) -> Jagged:
    """Returns the tokens that stand for a placeholder, for each of some items or histories."""
    if isinstance(given, Jagged):
        parts = [_shown(corpus, name.removesuffix("s"), given.values)]
        if name == "titles":
            parts.insert(0, repeated(corpus.vocabulary.phrase(LINE), len(given.values)))
        items = joined(parts)
        return Jagged(items.values, items.offsets[given.offsets])
    if name == "sid":
        tokens = corpus.vocabulary.sid_tokens(corpus.sid_codes[given])
        return Jagged(tokens.flatten(), torch.arange(len(tokens) + 1) * tokens.shape[1])
    return gather(corpus.titles if name == "title" else corpus.captions, given)
