"""The paths of `benchmarks.gpu_check`: everything in models/ that may use a GPU, by name, on random data.

A path returns its results as tensors by name, the same for the same setting; results of a fit are named `fit_…`, those
in bfloat16 `bf16_…`. Random numbers are drawn on the CPU. Every path has its own imports, so that a missing library
fails only that path.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from models.common.recommender import Queries
    from models.recommenders.fitting import TrainingTask
    from models.recommenders.next_item import NextItemModel

SEED = 0
WORDS = [f"word{number}" for number in range(200)]
SPECIAL = ["<pad>", "<|im_end|>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]


class Sizes(NamedTuple):
    """Sizes of the data and of the models."""

    pictures: int  # number of pictures, and of texts
    rows: int  # rows of quantizers and rankers
    width: int
    codes: int  # codes per level
    items: int
    users: int
    dim: int  # width of recommenders
    steps: int  # steps of a fit


FULL = Sizes(pictures=128, rows=20_000, width=256, codes=256, items=5_000, users=512, dim=128, steps=20)
SMALL = Sizes(pictures=3, rows=300, width=16, codes=8, items=60, users=24, dim=16, steps=4)


class Setting(NamedTuple):
    """The device of a path, its sizes, and the folder that it may write to."""

    device: torch.device
    folder: Path
    sizes: Sizes


Results = dict[str, torch.Tensor]


def image_encoder(setting: Setting) -> Results:
    """Runs EfficientNet-Lite0."""
    from models.common import encoders

    encoder = encoders.image_encoder()
    vectors = encoder.encode(_pictures(setting.sizes.pictures))
    labels = encoder.label_probabilities(vectors)
    return {"vectors": torch.from_numpy(vectors), "labels": torch.from_numpy(labels)}


def text_encoder(setting: Setting) -> Results:
    """Runs MiniLM."""
    from models.embedding.local import LocalTexts

    return {"vectors": torch.from_numpy(LocalTexts().embed_texts(_texts(setting.sizes.pictures)).vectors)}


def chat(setting: Setting) -> Results:
    """Runs a tiny random vision-language model with and without pictures, in float32 and in the precision of `auto`."""
    from models.chat.base import Prompt
    from models.chat.huggingface import HuggingFaceChat

    folder = setting.folder / "chat"
    if not folder.exists():
        _write_vision_language_model(folder)
    pictures, texts = _pictures(setting.sizes.pictures), _texts(setting.sizes.pictures)
    prompts = [Prompt(text, images=(picture,)) for text, picture in zip(texts, pictures, strict=True)]
    prompts += [Prompt(text) for text in texts]
    answers = HuggingFaceChat(str(folder), dtype="float32", max_new_tokens=8).complete(prompts)
    HuggingFaceChat(str(folder), max_new_tokens=8).complete(prompts)  # another precision may change the text
    return {"answers": torch.tensor([_number(str(answer)) for answer in answers])}


def embedding(setting: Setting) -> Results:
    """Runs a tiny random BERT through sentence-transformers, in float32 and bfloat16."""
    from models.embedding.sentence_transformers import SentenceTransformers

    folder = setting.folder / "embedding"
    if not folder.exists():
        _write_text_model(folder)
    options: dict[str, Any] = {"model": str(folder), "width": 32, "pooling": "mean"}
    texts = _texts(setting.sizes.pictures)
    plain, half = (SentenceTransformers(dtype=dtype, **options) for dtype in ("float32", "bfloat16"))
    return {
        "vectors": torch.from_numpy(plain.embed_texts(texts).vectors),
        "bf16_vectors": torch.from_numpy(half.embed_texts(texts).vectors),
    }


def rqvae(setting: Setting) -> Results:
    """Runs a random quantizer's codes and reconstructions, a fit with all its parts, and a resumed fit."""
    from models.semantic_ids.quantizer import RQVAE, Architecture, Quantizer
    from models.semantic_ids.rqvae import RESET_EVERY, Schedule, fit_rqvae
    from models.semantic_ids.training_rows import collect

    sizes, random = setting.sizes, _random()
    shape = Architecture(RQVAE, sizes.width, (sizes.codes,) * 3, sizes.width // 2, hidden_dims=(sizes.width,))
    torch.manual_seed(SEED)
    quantizer = Quantizer(shape)
    for codebook in quantizer.codebooks:
        torch.nn.init.normal_(codebook)
    values = torch.randn(sizes.rows, sizes.width, generator=random)
    quantizer, inputs = quantizer.to(setting.device), values.to(setting.device)
    codes = quantizer.encode(inputs)
    found = {"codes": codes, "decoded": quantizer.decode(codes), "last_distances": quantizer.last_distances(inputs)}

    signals = torch.randn(sizes.rows, 8, generator=random).numpy()
    rows = collect([(values.numpy(), signals)]).to(setting.device)
    schedule = Schedule(steps=2 * RESET_EVERY, alignment=0.1)
    curve, states = list[float](), list[dict[str, torch.Tensor]]()

    def report(metrics: dict[str, float], snapshot: Callable[[], dict[str, torch.Tensor]]) -> None:
        curve.append(metrics["reconstruction"])
        states.append({name: tensor.cpu().clone() for name, tensor in snapshot().items()})

    fit_rqvae(rows, shape, schedule, seed=SEED, report=report)
    fitted = fit_rqvae(rows, shape, schedule, seed=SEED, state=states[-2])
    encoded = fitted.to(setting.device).encode(inputs)
    return found | {"fit_reconstruction": torch.tensor(curve), "fit_usage": _usage(encoded)}


def rqkmeans(setting: Setting) -> Results:
    """Runs residual k-means, plain and balanced."""
    from models.semantic_ids.quantizer import RQKMEANS, Architecture
    from models.semantic_ids.rqkmeans import fit_rqkmeans
    from models.semantic_ids.training_rows import collect

    sizes = setting.sizes
    shape = Architecture(RQKMEANS, sizes.width, (sizes.codes,) * 2, sizes.width)
    values = torch.randn(sizes.rows, sizes.width, generator=_random()).numpy()
    found = {}
    for balanced in (False, True):
        rows = collect([(values, np.empty((len(values), 0), np.float32))]).to(setting.device)
        quantizer = fit_rqkmeans(rows, shape, seed=SEED, balanced=balanced).to(setting.device)
        inputs = torch.from_numpy(values).to(setting.device)
        left = [inputs - quantizer.decode(quantizer.encode(inputs)[:, :depth]) for depth in (1, 2)]
        found["fit_balanced" if balanced else "fit_plain"] = torch.stack([part.square().mean() for part in left])
    return found


def sasrec(setting: Setting) -> Results:
    """Runs SASRec: recommendations, and a fit."""
    from models.recommenders.sasrec import SasRec, SasRecConfig

    torch.manual_seed(SEED)
    config = SasRecConfig(dim=setting.sizes.dim, dropout=0.0)
    return _next_item(SasRec(config, torch.ones(setting.sizes.items, dtype=torch.int64)), setting)


def product_codes(setting: Setting) -> Results:
    """Runs the generator over product codes: recommendations, and a fit."""
    from models.recommenders.product_codes import ProductCodes, ProductCodesConfig
    from models.recommenders.product_quantizer import Quantized

    sizes, random, parts = setting.sizes, _random(), 4
    codes = torch.randint(sizes.codes, (sizes.items, parts), generator=random)
    words = torch.randn(parts, sizes.codes, sizes.dim // parts, generator=random)
    torch.manual_seed(SEED)
    config = ProductCodesConfig(dim=sizes.dim, dropout=0.0)
    return _next_item(ProductCodes(config, Quantized(codes, words)), setting)


def language_model(setting: Setting) -> Results:
    """Runs the language model over semantic IDs: constrained decoding, greedy titles, held-out losses, and a fit."""
    from models.common.llama import Tiny
    from models.generation.backbones import build
    from models.generation.examples import Corpus, Sampler, item_texts, prompts
    from models.generation.greedy import greedy
    from models.generation.heldout import task_losses
    from models.generation.language import LanguageModel
    from models.generation.packing import pack
    from models.generation.tasks import load_tasks
    from models.generation.trie import Trie
    from models.generation.vocabulary import Vocabulary
    from models.recommenders.fitting import TrainingTask
    from models.recommenders.language_model import LanguageModelRecommender
    from models.recommenders.settings import LanguageModelSettings

    sizes, tasks = setting.sizes, load_tasks()
    settings = LanguageModelSettings(tasks=tasks, beams=20)
    texts = _texts(sizes.items)
    vocabulary = Vocabulary.trained((sizes.codes,) * 2 + (sizes.items,), [*texts, *(t.prompt for t in tasks)], 400)
    paths = torch.randint(sizes.codes, (sizes.items, 2), generator=_random())
    paths = torch.cat([paths, torch.arange(sizes.items)[:, None]], dim=1)  # the last level makes all items unique
    titles = item_texts(vocabulary, texts, max_tokens=8)
    queries = _queries(setting)
    held_out = torch.arange(sizes.items) % 10 == 0
    corpus = Corpus(vocabulary, paths, titles, titles, queries.histories, held_out, tokens_per_row=160)
    backbone = build(Tiny(layers=2, dim=sizes.dim, heads=2, mlp=2 * sizes.dim, dropout=0.0), vocabulary, seed=SEED)
    model = LanguageModel(backbone, vocabulary).to(setting.device).eval()

    trie = Trie.build(paths, vocabulary.sizes)
    lists = LanguageModelRecommender(model, corpus, trie, settings).recommend(
        queries.histories, k=10, banned=queries.seen, allowed=torch.arange(sizes.items) % 7 > 0
    )
    written = next(task for task in tasks if task.target == "title" and not task.over_histories)
    tokens, lengths = (part.to(setting.device) for part in prompts(corpus, written, torch.arange(8)))
    answers = greedy(model, tokens, lengths, max_tokens=8)
    losses = task_losses(model, corpus, tasks, queries, most=20)
    found = {"items": lists.items, "scores": lists.scores, "losses": torch.tensor(list(losses.values()))}
    found["title_lengths"] = answers.offsets.diff()

    sampler = Sampler(corpus, tasks, seed=SEED)

    def draw(step: int) -> list[Any]:
        return pack(sampler.draw(step, documents=64), tokens_per_row=160, rows=32, pad=vocabulary.pad)

    def recommender(learner: Any) -> LanguageModelRecommender:
        return LanguageModelRecommender(learner, corpus, trie, settings)

    task = TrainingTask(model, draw, recommender, lambda learner: task_losses(learner, corpus, tasks, queries, most=20))
    return found | {"bf16_fit_loss": _fit(task, queries, setting)}


def ranker(setting: Setting) -> Results:
    """Runs a ranker's dense part: every architecture forward and backward, float32 and bfloat16; target attention."""
    from models.ranking.architectures import build
    from models.ranking.attention import TargetAttention
    from models.ranking.config import Dcnv2, Dlrm, RankMixer

    sizes, random, found = setting.sizes, _random(), {}
    fields = torch.randn(sizes.rows // 4, 12, 16, generator=random).to(setting.device)
    dense = torch.randn(sizes.rows // 4, 8, generator=random).to(setting.device)
    label = (torch.rand(sizes.rows // 4, generator=random) < 0.3).float().to(setting.device)
    experts = RankMixer(block="large", layers=3, inter_residual=2, auxiliary=True, experts=2, active=1)
    towers: list[tuple[str, Dlrm | Dcnv2 | RankMixer]] = [("dlrm", Dlrm()), ("dcnv2", Dcnv2())]
    for name, config in [*towers, ("rankmixer", RankMixer()), ("experts", experts)]:
        torch.manual_seed(SEED)
        tower = build(config, fields=12, dim=16, dense=8).to(setting.device)
        for prefix, precision in (("", torch.float32), ("bf16_", torch.bfloat16)):
            tower.zero_grad()
            inputs = fields.to(precision).requires_grad_(), dense.to(precision)
            with torch.autocast(setting.device.type, precision, enabled=precision != torch.float32):
                logits = tower(*inputs).float()
            functional.binary_cross_entropy_with_logits(logits, label.expand_as(logits)).backward()
            gradients = [part.grad.norm() for part in tower.parameters() if part.grad is not None]
            found[f"{prefix}{name}"] = logits[0].detach()
            found[f"{prefix}{name}_gradients"] = torch.stack(gradients)
    torch.manual_seed(SEED)
    attention, known = TargetAttention(16).to(setting.device), torch.arange(12) < 7
    mask = known.to(setting.device).expand(len(fields), 12)
    found["attention"] = attention(fields[:, 0], fields, mask)
    return found


PATHS: dict[str, Callable[[Setting], Results]] = {
    path.__name__: path
    for path in (
        image_encoder,
        text_encoder,
        chat,
        embedding,
        rqvae,
        rqkmeans,
        sasrec,
        product_codes,
        language_model,
        ranker,
    )
}


def _next_item(model: NextItemModel, setting: Setting) -> Results:
    """Returns the recommendations of a random model, and its fit."""
    from models.recommenders.fitting import TrainingTask

    queries, users = _queries(setting), setting.sizes.users
    model = model.to(setting.device).eval()
    lists = model.recommend(
        queries.histories, k=10, banned=queries.seen, allowed=torch.arange(setting.sizes.items) % 7 > 0
    )

    def draw(step: int) -> list[torch.Tensor]:
        return [model.windows(queries.histories, (torch.arange(64) + 64 * step) % users)]

    task = TrainingTask(model, draw, lambda learner: learner, limit=model.limit)
    return {"items": lists.items, "scores": lists.scores, "bf16_fit_loss": _fit(task, queries, setting)}


def _fit(task: TrainingTask, queries: Queries, setting: Setting) -> torch.Tensor:
    """Returns the training losses of a fit in bfloat16, and of one that resumes from its first state."""
    from models.common.settings import FitConfig
    from models.recommenders.fitting import Callbacks, fit

    steps = setting.sizes.steps
    config = FitConfig(steps=steps, validate_every=steps // 2, warmup=1, patience=9)
    curve, states = list[float](), list[dict[str, torch.Tensor]]()

    def report(metrics: dict[str, Any], state: Callable[[], dict[str, torch.Tensor]]) -> None:
        if "train_loss" in metrics:
            curve.append(metrics["train_loss"])
            states.append(state())

    callbacks = Callbacks(report, lambda learner, tensors: None)
    fit(config, task, queries, callbacks, seed=SEED, device=setting.device)
    task.learner.zero_grad()  # torch restores an optimizer only before there are gradients
    fit(config, task, queries, callbacks, seed=SEED, device=setting.device, state=dict(states[0]))
    return torch.tensor(curve)


def _queries(setting: Setting) -> Queries:
    """Draws histories of 2 to 20 items, some of which may not be recommended again."""
    from models.common.jagged import Jagged
    from models.common.recommender import Queries

    random, (_, _, _, _, items, users, _, _) = _random(), setting.sizes
    lengths = torch.randint(2, 21, (users,), generator=random)
    offsets = functional.pad(lengths.cumsum(0), (1, 0))
    histories = Jagged(torch.randint(items, (int(offsets[-1]),), generator=random), offsets)
    return Queries(np.arange(users), histories, torch.randint(items, (users,), generator=random), histories)


def _usage(codes: torch.Tensor) -> torch.Tensor:
    """Returns the share of rows with the most frequent code, per level, float32 [L]."""
    return torch.stack([level.bincount().max() / len(level) for level in codes.T])


def _random() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def _pictures(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(SEED)
    return [random.integers(0, 256, (64 + number % 9, 80, 3), dtype=np.uint8) for number in range(count)]


def _texts(count: int) -> list[str]:
    random = np.random.default_rng(SEED)
    return [" ".join(random.choice(WORDS, 1 + number % 12)) for number in range(count)]


def _number(text: str) -> int:
    """Returns a number for a text, so that texts can be compared like integers."""
    from storage.hashing import hash_strings

    return int(hash_strings([text])[0] >> np.uint64(1))


def _write_vision_language_model(folder: Path) -> None:
    """Writes a random Idefics3, the architecture of SmolVLM, over bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3Processor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    alphabet = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    fast = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[]))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token=SPECIAL[0], eos_token=SPECIAL[1], extra_special_tokens=SPECIAL[2:]
    )
    template = "{% for m in messages %}{% for part in m.content %}{% if part.type == 'image' %}<image>{% else %}"
    template += "{{ part.text }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    tokenizer.chat_template = template
    layers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"vocab_size": len(alphabet), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    config = Idefics3Config(
        text_config={"model_type": "llama", **layers, **ids, "num_key_value_heads": 2, "initializer_range": 0.4},
        vision_config={**layers, "image_size": 32, "patch_size": 8, "initializer_range": 0.2},
        scale_factor=2,
        image_token_id=SPECIAL.index("<image>"),
    )
    torch.manual_seed(SEED)
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    size = {"longest_edge": 32}
    pictures = Idefics3ImageProcessorPil(size=size, max_image_size=size, do_image_splitting=False)
    Idefics3Processor(pictures, tokenizer, image_seq_len=4, chat_template=template).save_pretrained(folder)


def _write_text_model(folder: Path) -> None:
    """Writes a random BERT over the words of `_texts`."""
    from transformers import BertConfig, BertModel, BertTokenizer

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    layers: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(vocabulary), intermediate_size=64, initializer_range=0.5, **layers)
    torch.manual_seed(SEED)
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
