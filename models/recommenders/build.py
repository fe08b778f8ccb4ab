"""Builds what is fitted from settings and data: models, their batches and their vocabularies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from models.common.collectives import rank_and_size
from models.common.jagged import Jagged
from models.common.llama import Tiny
from models.common.recommender import Queries
from models.common.seeds import generator, seed_of
from models.generation.backbones import adapted, load_tokenizer, plain
from models.generation.examples import Corpus, Sampler, examples, item_texts
from models.generation.heldout import task_losses
from models.generation.language import LanguageModel
from models.generation.packing import Batch, pack
from models.generation.trie import Trie
from models.generation.vocabulary import Vocabulary
from models.recommenders.fitting import TrainingTask
from models.recommenders.language_model import LanguageModelRecommender, corpus_of_ids
from models.recommenders.next_item import NextItemModel
from models.recommenders.product_quantizer import Quantized, quantize
from models.recommenders.settings import CodesSettings, LanguageModelSettings, ProductCodesSettings, check_codewords
from models.recommenders.warm import take_over_tokens
from models.semantic_ids.collaborative import impute
from storage.errors import UserError
from storage.hashing import hash_numbers

ORDER, HELD_OUT, LEFT_OUT = 41, 42, 43  # what is drawn
VALID_EXAMPLES = 100  # of each task, at most, for its loss at every validation
BUCKET = 20  # batches whose users are sorted by the length of their histories, so that little is padded


def quantize_items(
    settings: CodesSettings,
    embeddings: np.ndarray,
    collaborative: np.ndarray | None,
    *,
    drawn: np.ndarray | None = None,
    seed: int,
) -> Quantized:
    """Quantises items into product codes.

    For RPG these are of the whitened embeddings. For product codes they are of the embeddings and, beside them, of what
    users chose, each centred and of mean square 1 per item.

    Of an item that nobody has chosen the latter is imputed from its embedding. Such vectors lie closer together than
    true ones, and in fewer directions; so that there are codewords near them, a share of the other items have theirs
    imputed, too, where codewords are learned. Their own codes are of their true vectors: nothing is lost on them.
    Where every item was chosen, nothing is imputed.

    Args:
        settings: of one of the two.
        embeddings: float32 [N, D].
        collaborative: float32 [N, W], vectors of what users chose in training, NaN in the rows of items that nobody
            has chosen; None for none.
        drawn: bool [N], that share of the items; None for none.
        seed: of every draw.

    Raises:
        UserError: the catalogue has one item, or fewer than codewords.
    """
    check_codewords(settings, len(embeddings))
    into = partial(quantize, codes=settings.codes, codewords=settings.codewords, seed=seed)
    if not isinstance(settings, ProductCodesSettings):
        dim = math.ceil(embeddings.shape[1] / settings.codes) * settings.codes
        return into(embeddings, dim=dim, whiten=True)
    content, dim = scaled(embeddings), settings.model.dim
    if collaborative is None:
        return into(content, dim=dim)
    known = ~np.isnan(collaborative).any(1)
    chosen = np.full_like(collaborative, np.nan)
    chosen[known] = scaled(collaborative[known])

    imputed = chosen if known.all() else impute(chosen, content)

    def joined(true: np.ndarray) -> np.ndarray:
        return np.hstack([content, settings.collaborative * np.where(true[:, None], chosen, imputed)])

    learned = None if drawn is None or known.all() else joined(known & ~drawn)
    return into(joined(known), dim=dim, learned=learned)


def scaled(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors of items, centred and of mean square 1 per item, float32 [N, D]."""
    centred = vectors - vectors.mean(0)
    return (centred / max(float(np.sqrt((centred**2).sum(1).mean())), 1e-12)).astype(np.float32)


def next_item_task(model: NextItemModel, sequences: Jagged, batch_size: int, *, seed: int) -> TrainingTask:
    """Returns the fit of a model of whole items to training sequences."""
    users = ShuffledUsers(sequences, batch_size, seed=seed)

    def draw(step: int) -> list[torch.Tensor]:
        windows = model.windows(sequences, users.rows(step))
        if model.config.item_dropout:
            windows = model.thinned(windows, generator(LEFT_OUT, seed, step, rank_and_size()[0]))
        return [windows]

    return TrainingTask(model, draw, lambda learner: learner, limit=model.limit)


class ShuffledUsers:
    """Yields every user once per epoch, bucketed by history length."""

    def __init__(self, sequences: Jagged, batch_size: int, *, seed: int) -> None:
        self._lengths, self._size, self._seed = sequences.offsets.diff(), batch_size, seed
        self._epoch = -1
        self._batches: tuple[torch.Tensor, ...] = ()
        users, workers = len(self._lengths), rank_and_size()[1]
        if users < workers:
            raise UserError(f"{users} users cannot be shared by {workers} workers: lower stages.generate.workers.")
        # users that are left over and too few for a step of their own go along with the last one
        self._joined = users > batch_size and 0 < users % batch_size < workers
        self.per_epoch = -(-users // batch_size) - self._joined

    def rows(self, step: int) -> torch.Tensor:
        """Returns this worker's users of a step, at least one."""
        epoch, at = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffle(epoch)
        rank, workers = rank_and_size()
        return self._batches[at][rank::workers]

    def _shuffle(self, epoch: int) -> tuple[torch.Tensor, ...]:
        random = generator(ORDER, self._seed, epoch)
        users = torch.randperm(len(self._lengths), generator=random)
        blocks = [block[self._lengths[block].argsort(stable=True)] for block in users.split(self._size * BUCKET)]
        batches = [batch for block in blocks for batch in block.split(self._size)]
        if self._joined:
            batches[-2:] = [torch.cat(batches[-2:])]
        return tuple(batches[at] for at in torch.randperm(len(batches), generator=random).tolist())


def make_vocabulary(
    settings: LanguageModelSettings, sizes: Sequence[int], texts: Sequence[Sequence[str | None]], *, suffixes: bool
) -> Vocabulary:
    """Returns the tokens of a catalogue; a decoder from scratch gets a tokenizer trained on the texts.

    Args:
        sizes: codes of each level of semantic IDs; suffixes: whether the last one is that of the suffixes.
        texts: titles and captions of the items, None where there is none; not read without tasks over text.
    """
    if not settings.tasks:
        return Vocabulary.sequence_only(sizes, suffixes=suffixes)
    if not isinstance(settings.backbone, Tiny):
        return Vocabulary.extended(sizes, *load_tokenizer(settings.backbone), suffixes=suffixes)
    given = [text for column in texts for text in column if text]
    prompts = [task.prompt for task in settings.trained_tasks]
    return Vocabulary.trained(sizes, [*given, *prompts], settings.text_tokens, suffixes=suffixes)


def make_corpus(
    settings: LanguageModelSettings,
    vocabulary: Vocabulary,
    codes: torch.Tensor,
    texts: Sequence[Sequence[str | None]],
    sequences: Jagged,
    *,
    seed: int,
) -> Corpus:
    """Returns a catalogue and its training sequences in tokens of a vocabulary.

    Args:
        codes: int64 [N, L'], see `models.generation.vocabulary.sid_codes`.
        texts: titles and captions of the N items; not read without tasks over text.
        sequences: item rows of each user's training history.
        seed: of the choice of held-out items.
    """
    corpus = replace(corpus_of_ids(settings, vocabulary, codes), sequences=sequences)
    if not settings.tasks:
        return corpus
    titles, captions = (item_texts(vocabulary, column, max_tokens=settings.max_text) for column in texts)
    order = np.argsort(hash_numbers(*codes.numpy().T, seed=seed_of(HELD_OUT, seed)))  # mostly the same as items come
    held_out = torch.zeros(len(codes), dtype=torch.bool)
    held_out[order[: math.ceil(settings.held_out * len(order))]] = True
    return replace(corpus, titles=titles, captions=captions, held_out=held_out)


def language_model_task(
    settings: LanguageModelSettings,
    corpus: Corpus,
    valid: Queries,
    *,
    seed: int,
    earlier: LanguageModel | None = None,
) -> TrainingTask:
    """Returns the fit of the language model to a corpus, from the weights of an earlier one where they fit.

    Raises:
        UserError: there is nothing to learn a task from, a row has no room for a history, or two items share their
            semantic ID.
    """
    vocabulary, config = corpus.vocabulary, settings.fit
    backbone = plain(settings.backbone, vocabulary, seed=seed)
    warm = earlier is not None and take_over_tokens(backbone, earlier.backbone)  # which has its adapters merged
    model = LanguageModel(adapted(backbone, settings.backbone, vocabulary, seed=seed), vocabulary)
    drawn_by = settings.model_copy(update={"schedule": "joint"}) if warm else settings
    sampler, trie = check_learnable(settings, corpus, seed=seed)

    def draw(step: int) -> list[Batch]:
        rank, workers = rank_and_size()
        odds = task_odds(drawn_by, step)
        drawn = sampler.draw(step, documents=config.batch_size, odds=odds, rank=rank, workers=workers)
        return pack(drawn, tokens_per_row=settings.tokens_per_row, rows=settings.rows_per_pass, pad=vocabulary.pad)

    recommender = partial(LanguageModelRecommender, corpus=corpus, trie=trie, settings=settings)
    if not settings.tasks:
        return TrainingTask(model, draw, recommender, warm=warm)
    all_drawn = config.steps // 2 if drawn_by.schedule == "content_first" else 0
    losses = partial(
        task_losses,
        corpus=corpus,
        tasks=settings.trained_tasks,
        queries=valid,
        most=min(VALID_EXAMPLES, config.valid_queries),
        seed=seed,
    )
    return TrainingTask(model, draw, recommender, losses, patience_from=all_drawn, warm=warm)


def without_unlearnable(settings: LanguageModelSettings, corpus: Corpus) -> LanguageModelSettings:
    """Returns the settings without the optional tasks that a corpus has no example of."""
    kept = tuple(task for task in settings.tasks if not task.optional or len(examples(corpus, task)))
    return settings.model_copy(update={"tasks": kept})


def check_learnable(settings: LanguageModelSettings, corpus: Corpus, *, seed: int) -> tuple[Sampler, Trie]:
    """Returns what draws documents and what decodes, and finds what cannot be learned.

    Raises:
        UserError: there is nothing to learn a task from, a row has no room for a history, or two items share their
            semantic ID.
    """
    sampler = Sampler(corpus, settings.trained_tasks, seed=seed)
    return sampler, Trie.build(corpus.sid_codes, corpus.vocabulary.sizes)


def task_odds(settings: LanguageModelSettings, step: int) -> list[float]:
    """Returns the odds of the tasks at a step: `main_share` for the one that recommends, the rest evenly.

    Tasks that the schedule does not draw at the step have none.
    """
    tasks, main = settings.trained_tasks, settings.recommending_task
    drawn = tasks
    if settings.schedule == "content_first" and step < settings.fit.steps // 2:
        recommend = step >= settings.fit.steps // 4
        drawn = tuple(task for task in tasks if task.over_histories == recommend) or tasks
    other = (1 - settings.main_share) / max(1, len(drawn) - (main in drawn))
    return [(settings.main_share if task == main else other) if task in drawn else 0.0 for task in tasks]
