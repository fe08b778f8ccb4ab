"""The next-item models of a run: what they are made of, how they are made, and how they are found again."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from models.common.collectives import rank_and_size
from models.common.devices import own_device
from models.common.jagged import Jagged
from models.common.recommender import Queries, Recommender
from models.common.seeds import generator
from models.generation.backbones import Tiny, build, load_tokenizer
from models.generation.examples import Corpus, Sampler, item_texts
from models.generation.heldout import HeldOut, task_losses
from models.generation.language import LanguageModel, load_generator, save_generator
from models.generation.packing import Batch, pack
from models.generation.trie import Trie
from models.generation.vocabulary import Vocabulary, paths
from models.recommenders.artifacts import load_next_item
from models.recommenders.fitting import Subject
from models.recommenders.language_model import SequentialRecommender
from models.recommenders.next_item import NextItemModel
from models.recommenders.product_codes import ParallelGenerator
from models.recommenders.product_quantizer import Digits, fit_digits
from models.recommenders.sasrec import SasRec
from models.recommenders.settings import ParallelSettings, SasRecSettings, SequentialSettings
from operators.columns import matrix_column, matrix_of, positions, rows_of
from operators.features.ranker_inputs import aligned
from operators.log.collaborative import collaborative_vectors
from operators.log.encoding import read_log
from operators.log.sequences import queries, training_sequences
from operators.log.split import Split
from storage import files
from storage.artifacts import load_model, save_model
from storage.errors import UserError
from storage.hashing import hash_order
from storage.run import RunDir

SEQUENTIAL, DIGITS = "sequential", "digits"
ORDER, HELD_OUT = 41, 42  # what is drawn
VALID_EXAMPLES = 100  # of each task, at most, for its loss at every validation
BUCKET = 20  # batches whose users are sorted by the length of their histories, so that little is padded


class Data(NamedTuple):
    """What next-item models learn from and are asked; items are rows of `item_ids`."""

    item_ids: pa.ChunkedArray  # N, in hash order
    sequences: Jagged  # of training
    warm: np.ndarray  # bool [N], items with an event of any kind in training
    valid: Queries
    test: Queries


def read_data(run: RunDir, split: Split, *, history: int, repeats: bool) -> Data:
    """The training sequences of a run, and the queries of validation and test.

    Raises:
        UserError: the log cannot be split so, or nobody has two positives in training.
    """
    log = read_log(run)
    ids, events = log.items, log.events
    numbers = split.numbers(events)
    sequences = training_sequences(events, numbers)
    if not (sequences.offsets.diff() > 1).any():
        raise UserError("No user has two positives in the training part of the log: give a longer one.")
    asked = (queries(events, numbers, name, history=history, repeats=repeats) for name in ("valid", "test"))
    return Data(ids, sequences, np.isin(np.arange(len(ids)), events.item[numbers == 0]), *asked)


def item_ids(run: RunDir) -> pa.ChunkedArray:
    """The items of a run in hash order, which is the order of rows of all that is fitted here."""
    ids = run.read_table("embeddings", columns=["item_id"])["item_id"]
    return ids.take(pa.array(hash_order(ids.to_pylist())))


def write_digits(run: RunDir, settings: ParallelSettings, ids: pa.ChunkedArray, split: Split, *, seed: int) -> None:
    """Quantise the items into parallel semantic IDs, and write them with their codewords to models/generator/digits.

    What is quantised are the embeddings and, beside them, what users chose in training, each centred and of mean
    square 1 per item.

    Raises:
        UserError: the catalogue has fewer items than codewords.
    """
    if len(ids) < 2:
        raise UserError("There is one item alone and nothing to choose from: leave generate out of the stages.")
    if len(ids) < settings.codewords:
        raise UserError(
            f"{len(ids)} items are too few for {settings.codewords} codewords: lower stages.generate.parallel.codewords"
            f" to {1 << (len(ids).bit_length() - 1)} or less."
        )
    parts = [_scaled(aligned(ids, run.read_table("embeddings")).numpy())]
    if settings.collaborative:
        chosen = collaborative_vectors(run, split, width=settings.width, seed=seed)
        vectors = np.zeros((len(ids), chosen["vector"].type.list_size), np.float32)
        vectors[positions(chosen["item_id"], ids)] = matrix_of(chosen["vector"])
        parts.append(settings.collaborative * _scaled(vectors))
    found = fit_digits(
        np.hstack(parts), dim=settings.model.dim, digits=settings.digits, codewords=settings.codewords, seed=seed
    )
    save_model(run.uri("models", "generator", "digits"), DIGITS, {}, found._asdict())


def _scaled(vectors: np.ndarray) -> np.ndarray:
    centred = vectors - vectors.mean(0)
    return (centred / max(float(np.sqrt((centred**2).sum(1).mean())), 1e-12)).astype(np.float32)


def next_item_subject(settings: SasRecSettings | ParallelSettings, run: RunDir, data: Data, *, seed: int) -> Subject:
    """SASRec or the parallel generator, to be fitted."""
    torch.manual_seed(seed)
    model: NextItemModel
    if isinstance(settings, ParallelSettings):
        _, digits = load_model(run.uri("models", "generator", "digits"), DIGITS)
        model = ParallelGenerator(settings.model, Digits(**digits))
    else:
        model = SasRec(settings.model, items=len(data.item_ids))
    steps = Shuffled(data.sequences, settings.course.batch_size, seed=seed)
    return Subject(model, lambda step: [model.windows(data.sequences, steps.rows(step))], lambda learner: learner)


class Shuffled:
    """The users of every step: each once per epoch, beside users of histories about as long."""

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
        """This worker's users of a step, at least one."""
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


def sequential_subject(settings: SequentialSettings, run: RunDir, data: Data, *, seed: int) -> Subject:
    """The language model over semantic IDs, to be fitted."""
    vocabulary = make_vocabulary(settings, run, data.item_ids)
    corpus = make_corpus(settings, run, data, vocabulary, seed=seed)
    model = LanguageModel(build(settings.backbone, vocabulary, seed=seed), vocabulary)
    sampler, course = Sampler(corpus, settings.learned, seed=seed), settings.course

    def draw(step: int) -> list[Batch]:
        rank, workers = rank_and_size()
        odds = task_odds(settings, step)
        drawn = sampler.draw(step, documents=course.batch_size, odds=odds, rank=rank, workers=workers)
        return pack(drawn, tokens_per_row=settings.tokens_per_row, rows=settings.rows_per_pass, pad=vocabulary.pad)

    recommender = partial(SequentialRecommender, corpus=corpus, task=settings.main, beams=settings.beams)
    if not settings.tasks:
        return Subject(model, draw, recommender)
    patience_from = course.steps // 2 if settings.schedule == "staged" else 0  # all tasks are drawn from there on
    held_out = HeldOut(corpus.held_out.nonzero()[:, 0], data.valid.histories, data.valid.target)
    losses = partial(
        task_losses,
        corpus=corpus,
        tasks=settings.learned,
        held_out=held_out,
        most=min(VALID_EXAMPLES, course.valid_queries),
        seed=seed,
    )
    return Subject(model, draw, recommender, losses, patience_from)


def require_learnable(settings: SequentialSettings, run: RunDir, data: Data, *, seed: int) -> None:
    """Look for what the language model is to be learned from, before anything is fitted.

    Raises:
        UserError: there is nothing to learn a task from, a row has no room for a history, two items share their
            semantic ID, or a model that was trained before is not there.
    """
    vocabulary = make_vocabulary(settings, run, data.item_ids)
    corpus = make_corpus(settings, run, data, vocabulary, seed=seed)
    Sampler(corpus, settings.learned, seed=seed)
    Trie.build(corpus.paths, vocabulary.sizes)


def task_odds(settings: SequentialSettings, step: int) -> list[float] | None:
    """Odds of the tasks at a step: even ones, but for the first half of a staged schedule (after arXiv 2602.06654)."""
    if settings.schedule == "joint" or step >= settings.course.steps // 2:
        return None
    recommend = step >= settings.course.steps // 4
    odds = [float(task.over_histories == recommend) for task in settings.learned]
    return odds if any(odds) else None


def make_vocabulary(settings: SequentialSettings, run: RunDir, ids: pa.ChunkedArray) -> Vocabulary:
    """The tokens of a run's items; a decoder from scratch gets a tokenizer trained on their texts."""
    _, sizes, suffixes = sid_paths(run, ids)
    if not settings.tasks:
        return Vocabulary.sequence_only(sizes, suffixes=suffixes)
    if not isinstance(settings.backbone, Tiny):
        return Vocabulary.extended(sizes, *load_tokenizer(settings.backbone), suffixes=suffixes)
    texts = [text for column in texts_of(run, ids) for text in column if text]
    prompts = [task.prompt for task in settings.learned]
    return Vocabulary.trained(sizes, [*texts, *prompts], settings.text_tokens, suffixes=suffixes)


def make_corpus(settings: SequentialSettings, run: RunDir, data: Data, vocabulary: Vocabulary, *, seed: int) -> Corpus:
    """Semantic IDs and texts of a run in tokens of a vocabulary."""
    found, _, _ = sid_paths(run, data.item_ids)
    corpus = bare_corpus(settings, vocabulary, torch.from_numpy(found))
    if not settings.tasks:
        return replace(corpus, sequences=data.sequences)
    titles, captions = (
        item_texts(vocabulary, column, max_tokens=settings.max_text) for column in texts_of(run, data.item_ids)
    )
    order = torch.randperm(len(found), generator=generator(HELD_OUT, seed))
    held_out = torch.zeros(len(found), dtype=torch.bool)
    held_out[order[: math.ceil(settings.held_out * len(order))]] = True
    return replace(corpus, sequences=data.sequences, titles=titles, captions=captions, held_out=held_out)


def bare_corpus(settings: SequentialSettings, vocabulary: Vocabulary, found: torch.Tensor) -> Corpus:
    """Paths alone, int64 [N, L]: what recommending from semantic IDs needs."""
    nobody = torch.zeros(1, dtype=torch.int64)
    nothing = Jagged(nobody[:0], nobody.expand(len(found) + 1))
    return Corpus(
        vocabulary,
        found,
        titles=nothing,
        captions=nothing,
        sequences=Jagged(nobody[:0], nobody),
        held_out=torch.zeros(len(found), dtype=torch.bool),
        history=settings.history,
        max_text=settings.max_text,
        tokens_per_row=settings.tokens_per_row,
    )


def texts_of(run: RunDir, ids: pa.ChunkedArray) -> list[list[str | None]]:
    """Titles and captions of the items, None where there is none."""
    items = run.read_table("items", columns=["item_id", "title", "caption"])
    items = rows_of(ids, items, "items")
    return [items[name].to_pylist() for name in ("title", "caption")]


def sid_paths(run: RunDir, ids: pa.ChunkedArray) -> tuple[np.ndarray, tuple[int, ...], bool]:
    """The paths of the items, int64 [N, L], the codes of each level, and whether the last one is the suffix.

    Raises:
        ArtifactError: an item has no semantic ID.
    """
    sids = run.read_table("sids", columns=["item_id", "codes"])
    codebooks = run.read_json("models", "quantizer", "config.json")["codebook_sizes"]
    found, sizes = paths(matrix_of(rows_of(ids, sids, "sids")["codes"]), codebooks)
    return found, sizes, len(sizes) > len(codebooks)


def save_items(run: RunDir, ids: pa.ChunkedArray) -> None:
    """Write which item every row is, as `RUN/models/generator/items` (item_id)."""
    run.write_table(pa.table({"item_id": ids}), "models", "generator", "items")


def save_sequential(
    run: RunDir,
    uri: str,
    settings: SequentialSettings,
    model: LanguageModel,
    tensors: dict[str, torch.Tensor],
    ids: pa.ChunkedArray,
) -> None:
    """Write the language model and what recommends by it: its settings, and the paths of all items."""
    save_generator(uri, model, tensors)
    files.write_json(files.join(uri, "settings.json"), settings.model_dump(mode="json"))
    files.write_table(files.join(uri, "paths"), pa.table({"path": matrix_column(sid_paths(run, ids)[0])}))


def load_sequential(uri: str) -> tuple[SequentialSettings, SequentialRecommender]:
    """What `save_sequential` wrote, on the GPU of this process where it has one.

    Raises:
        UserError: there is none, or it is damaged.
    """
    model = load_generator(uri).to(own_device())
    try:
        settings = SequentialSettings.model_validate(files.read_json(files.join(uri, "settings.json")))
        found = matrix_of(files.read_table(files.join(uri, "paths"))["path"]).astype(np.int64)
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise UserError(f"The generator at {uri} is damaged: run the stage generate again.") from error
    corpus = bare_corpus(settings, model.vocabulary, torch.from_numpy(found))
    return settings, SequentialRecommender(model, corpus, settings.main, beams=settings.beams)


def load_recommenders(run: RunDir) -> dict[str, Recommender]:
    """The next-item models that a run has fitted, by name, ready to recommend, on a GPU where there is one.

    Raises:
        UserError: one of them is damaged.
    """
    return {name: load_recommender(run, name) for name in run.read_json("metrics", "generate.json")["history"]}


def load_recommender(run: RunDir, name: str) -> Recommender:
    """One of them.

    Raises:
        UserError: it is damaged, or was not fitted.
    """
    uri = run.uri("models", "generator", name)
    return load_sequential(uri)[1] if name == SEQUENTIAL else load_next_item(uri).to(own_device())
