"""The next-item models of a run: what they are made of, how they are made, and how they are found again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from models.generation import language
from models.generation.backbones import Tiny, build, load_tokenizer
from models.generation.examples import Corpus, Sampler, item_texts
from models.generation.packing import Batch, pack
from models.generation.recommender import SequentialRecommender
from models.generation.tasks import SEQUENCE, Task, load_tasks
from models.generation.vocabulary import Vocabulary, paths
from models.lists import Lists
from models.nextitem.artifact import load_next_item
from models.nextitem.base import NextItemModel
from models.nextitem.opq import Digits, fit_digits
from models.nextitem.parallel import ParallelGenerator
from models.nextitem.sasrec import SasRec
from models.recommending import Recommender
from models.seeds import generator
from models.workers import world
from operators.embed import vectors_of
from operators.features import aligned
from operators.sequences import Queries, queries, training_sequences
from operators.sids import codes_array, codes_matrix
from storage import files
from storage.errors import UserError
from storage.hashing import hash_order
from storage.run import RunDir
from storage.weights import load_model, save_model
from workflows.collaborative import collaborative_vectors
from workflows.generator_fit import Subject
from workflows.generator_settings import ParallelSettings, SasRecSettings, SequentialSettings
from workflows.log import Split, encode

SEQUENTIAL, DIGITS = "sequential", "digits"
ORDER, HELD_OUT = 41, 42  # what is drawn
BUCKET = 20  # batches whose users are sorted by the length of their histories, so that little is padded


class Data(NamedTuple):
    """What next-item models learn from; items are rows of `item_ids`."""

    item_ids: pa.ChunkedArray  # N, in hash order
    sequences: Lists  # of training
    valid: Queries


def read_data(run: RunDir, split: Split, *, history: int, repeats: bool) -> Data:
    """The training sequences and validation queries of a run.

    Raises:
        UserError: the log cannot be split so, or nobody has two positives in training.
    """
    ids = item_ids(run)
    events = encode(run.read_table("catalog", "interactions"), ids).events
    numbers = split.numbers(events)
    sequences = training_sequences(events, numbers)
    if not (sequences.offsets.diff() > 1).any():
        raise UserError("No user has two positives in the training part of the log: give a longer one.")
    return Data(ids, sequences, queries(events, numbers, "valid", history=history, repeats=repeats))


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
    if len(ids) < settings.codewords:
        raise UserError(
            f"{len(ids)} items are too few for {settings.codewords} codewords: lower stages.generate.parallel.codewords"
            f" to {1 << (len(ids).bit_length() - 1)} or less."
        )
    parts = [_scaled(aligned(ids, run.read_table("embeddings")).numpy())]
    if settings.collaborative:
        chosen = collaborative_vectors(run, split, width=settings.width, seed=seed)
        vectors = np.zeros((len(ids), chosen["vector"].type.list_size), np.float32)
        vectors[pc.index_in(chosen["item_id"], ids).to_numpy()] = vectors_of(chosen["vector"], vectors.shape[1])
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

    def __init__(self, sequences: Lists, batch_size: int, *, seed: int) -> None:
        self._lengths, self._size, self._seed = sequences.offsets.diff(), batch_size, seed
        self._epoch, self._batches = -1, (torch.empty(0, dtype=torch.int64),)
        self.per_epoch = -(-len(self._lengths) // batch_size)

    def rows(self, step: int) -> torch.Tensor:
        """This worker's users of a step, at least one."""
        epoch, at = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffle(epoch)
        rank, workers = world()
        rows = self._batches[at]
        return rows[rank % len(rows) :: workers]

    def _shuffle(self, epoch: int) -> tuple[torch.Tensor, ...]:
        random = generator(ORDER, self._seed, epoch)
        users = torch.randperm(len(self._lengths), generator=random)
        blocks = [block[self._lengths[block].argsort(stable=True)] for block in users.split(self._size * BUCKET)]
        batches = [batch for block in blocks for batch in block.split(self._size)]
        return tuple(batches[at] for at in torch.randperm(len(batches), generator=random).tolist())


def sequential_subject(
    settings: SequentialSettings, run: RunDir, data: Data, *, codebook_sizes: Sequence[int], seed: int
) -> Subject:
    """The language model over semantic IDs, to be fitted."""
    tasks = load_tasks(settings.tasks) if settings.tasks else (SEQUENCE,)
    corpus = make_corpus(settings, run, data, codebook_sizes=codebook_sizes, seed=seed)
    model = language.LanguageModel(build(settings.backbone, corpus.vocabulary, seed=seed), corpus.vocabulary)
    sampler = Sampler(corpus, tasks, seed=seed)
    course = settings.course

    def draw(step: int) -> list[Batch]:
        rank, workers = world()
        odds = task_odds(settings, tasks, step)
        drawn = sampler.draw(step, documents=course.batch_size, odds=odds, rank=rank, workers=workers)
        return pack(
            drawn, tokens_per_row=settings.tokens_per_row, rows=settings.rows_per_pass, pad=corpus.vocabulary.pad
        )

    return Subject(
        model, draw, partial(SequentialRecommender, corpus=corpus, task=recommending(tasks), beams=settings.beams)
    )


def recommending(tasks: Sequence[Task]) -> Task:
    """The first task that reads the semantic IDs of a history and writes one."""
    return next(task for task in tasks if task.inputs == ("sids",) and task.target == "sid")


def task_odds(settings: SequentialSettings, tasks: Sequence[Task], step: int) -> list[float] | None:
    """Odds of the tasks at a step: even ones, but for the first half of a staged schedule (after arXiv 2602.06654)."""
    if settings.schedule == "joint" or step >= settings.course.steps // 2:
        return None
    recommend = step >= settings.course.steps // 4
    odds = [float(task.over_histories == recommend) for task in tasks]
    return odds if any(odds) else None


def make_corpus(
    settings: SequentialSettings, run: RunDir, data: Data, *, codebook_sizes: Sequence[int], seed: int
) -> Corpus:
    """Semantic IDs and texts of a run in tokens."""
    found, sizes = paths(_aligned_codes(run, data.item_ids), codebook_sizes)
    digits = len(sizes) > len(codebook_sizes)
    titles: list[str | None] = [None] * len(data.item_ids)
    captions = titles
    if not settings.tasks:
        vocabulary = Vocabulary.sequence_only(sizes, digits=digits)
    else:
        items = run.read_table("items", columns=["item_id", "title", "caption"]).to_pandas().set_index("item_id")
        items = items.reindex(data.item_ids.to_pylist())
        titles, captions = ([text or None for text in items[name].fillna("")] for name in ("title", "caption"))
        if isinstance(settings.backbone, Tiny):
            texts = [text for text in (*titles, *captions) if text]
            prompts = [task.prompt for task in load_tasks(settings.tasks)]
            vocabulary = Vocabulary.trained(sizes, [*texts, *prompts], settings.text_tokens, digits=digits)
        else:
            vocabulary = Vocabulary.extended(sizes, *load_tokenizer(settings.backbone), digits=digits)
    held_out = torch.zeros(len(data.item_ids), dtype=torch.bool)
    if settings.tasks:
        order = torch.randperm(len(held_out), generator=generator(HELD_OUT, seed))
        held_out[order[: int(settings.held_out * len(order))]] = True
    nothing = Lists(torch.empty(0, dtype=torch.int64), torch.zeros(len(titles) + 1, dtype=torch.int64))
    texts_of = partial(item_texts, vocabulary, max_tokens=settings.max_text)
    return Corpus(
        vocabulary=vocabulary,
        paths=torch.from_numpy(found),
        titles=texts_of(titles) if settings.tasks else nothing,
        captions=texts_of(captions) if settings.tasks else nothing,
        sequences=data.sequences,
        held_out=held_out,
        history=settings.history,
    )


def _aligned_codes(run: RunDir, ids: pa.ChunkedArray) -> np.ndarray:
    sids = run.read_table("sids", columns=["item_id", "codes"])
    where = pc.index_in(ids, sids["item_id"])
    if where.null_count:
        raise UserError(f"{where.null_count} items have no semantic ID: run again with --from quantize.")
    return codes_matrix(sids["codes"].take(where))


def save_catalogue(run: RunDir, ids: pa.ChunkedArray) -> None:
    """Write which item every row is, as `RUN/models/generator/items` (item_id)."""
    run.write_table(pa.table({"item_id": ids}), "models", "generator", "items")


def save_sequential(uri: str, corpus: Corpus, task: Task, *, beams: int) -> None:
    """Write what recommends beside the language model: the paths of all items and the prompt."""
    files.write_json(
        files.join(uri, "recommender.json"),
        {"task": task.model_dump(mode="json"), "history": corpus.history, "beams": beams},
    )
    files.write_table(files.join(uri, "paths"), pa.table({"path": codes_array(corpus.paths.numpy())}))


def load_recommenders(run: RunDir) -> dict[str, Recommender]:
    """The next-item models that a run has fitted, by name, ready to recommend.

    Raises:
        UserError: one of them is damaged.
    """
    found: dict[str, Recommender] = {}
    for name in run.read_json("metrics", "generate.json")["history"]:
        uri = run.uri("models", "generator", name)
        found[name] = load_sequential(uri) if name == SEQUENTIAL else load_next_item(uri)
    return found


def load_sequential(uri: str) -> SequentialRecommender:
    """What `save_generator` and `save_sequential` wrote.

    Raises:
        UserError: there is none, or it is damaged.
    """
    model = language.load_generator(uri)
    told = files.read_json(files.join(uri, "recommender.json"))
    found = torch.from_numpy(codes_matrix(files.read_table(files.join(uri, "paths"))["path"]).astype(np.int64))
    nothing = torch.zeros(len(found) + 1, dtype=torch.int64)
    empty = Lists(nothing[:0], nothing)
    corpus = Corpus(
        model.vocabulary, found, empty, empty, Lists(nothing[:0], nothing[:1]), nothing[:-1].bool(), told["history"]
    )
    return SequentialRecommender(model, corpus, Task.model_validate(told["task"]), beams=told["beams"])
