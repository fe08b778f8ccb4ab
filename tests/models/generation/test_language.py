from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.nn import functional

from models.common.data_parallel import Strategy, backward, evaluating, gather_state, parallelise
from models.common.jagged import Jagged, gather
from models.common.llama import Tiny
from models.generation.backbones import Lora, adapt, build
from models.generation.language import LanguageModel, load_generator, save_generator
from models.generation.packing import Batch, pack
from models.generation.vocabulary import Vocabulary
from storage.errors import UserError
from tests.models.workers import on_ranks

CPU = torch.device("cpu")
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS = ("tiny", "llama", "qwen2", "qwen3", "gpt2")
VOCABULARY = Vocabulary.trained((6, 5, 3), ["a lamp of oak", "a chair of ash"], 270)


def model_of(kind: str, dropout: float = 0.0) -> LanguageModel:
    """A small random model; all but `tiny` with weights that transformers draws, of which few are near zero."""
    if kind == "tiny":
        settings = Tiny(layers=2, dim=16, heads=2, mlp=32, dropout=dropout)
        return LanguageModel(build(settings, VOCABULARY, seed=3), VOCABULARY).eval()
    from transformers import AutoConfig, AutoModelForCausalLM

    tied = kind in ("qwen3", "gpt2")
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2} if kind == "gpt2" else {**SMALL, "head_dim": 4}
    sizes |= {} if kind == "gpt2" else {"num_key_value_heads": 2}
    config = AutoConfig.for_model(
        kind, **sizes, vocab_size=VOCABULARY.size, tie_word_embeddings=tied, initializer_range=0.3
    )
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return LanguageModel(backbone, VOCABULARY).eval()


def documents(count: int = 7, seed: int = 0) -> Jagged:
    """Prompts of text and of semantic IDs, whose responses are of either kind."""
    generator = torch.Generator().manual_seed(seed)

    def text(length: int) -> torch.Tensor:
        return torch.randint(3, VOCABULARY.sid_start, (length,), generator=generator)

    def sid() -> torch.Tensor:
        codes = [torch.randint(size, (), generator=generator) for size in VOCABULARY.sizes]
        return VOCABULARY.sid_tokens(torch.stack(codes))

    prompts = [torch.cat([torch.tensor([VOCABULARY.bos]), text(1 + number), sid()]) for number in range(count)]
    responses = [sid() if number % 3 else text(2 + number) for number in range(count)]
    parts = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
    weights = [
        torch.cat([torch.zeros(len(prompt)), torch.full((len(said),), 1 / len(said))])
        for prompt, said in zip(prompts, responses, strict=True)
    ]
    offsets = functional.pad(torch.tensor([len(part) for part in parts]).cumsum(0), (1, 0))
    return Jagged(torch.cat(parts), offsets, torch.cat(weights))


def packed(found: Jagged, tokens_per_row: int = 40) -> Batch:
    (batch,) = pack(found, tokens_per_row=tokens_per_row, rows=100, pad=VOCABULARY.pad)
    return batch


def by_hand(model: LanguageModel, found: Jagged) -> torch.Tensor:
    """The mean over documents of their responses' losses, from the logits that transformers gives."""
    losses = []
    for start, end in zip(found.offsets[:-1], found.offsets[1:], strict=True):
        tokens, weights = found.values[start:end], found.weights[start:end]
        logits = model.backbone(input_ids=tokens[None]).logits[0]
        for at in weights.nonzero()[:, 0].tolist():
            bounds = [0, *(VOCABULARY.start(level) for level in range(4))]
            low, high = next(pair for pair in itertools.pairwise(bounds) if tokens[at] < pair[1])
            losses.append(-weights[at] * logits[at - 1, low:high].log_softmax(0)[tokens[at] - low])
    return torch.stack(losses).sum() / (len(found.offsets) - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_packed_documents_is_that_of_each_alone(kind):
    model, found = model_of(kind), documents()
    batch = packed(found)
    assert len(batch.tokens) < 7 < int((batch.targets != -100).sum())
    torch.testing.assert_close(model.loss(batch), by_hand(model, found), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_and_a_mask_give_what_one_pass_gives(kind):
    from transformers import DynamicCache

    model, tokens = model_of(kind), torch.randint(VOCABULARY.size, (3, 9), generator=torch.Generator().manual_seed(1))
    causal = torch.ones(9, 9, dtype=torch.bool).tril().expand(3, 1, 9, 9)
    positions = torch.arange(9).expand(3, 9)
    whole = model.hidden(tokens, positions, causal)
    cache, parts = DynamicCache(), []
    for start, end in ((0, 5), (5, 6), (6, 9)):
        at = slice(start, end)
        parts.append(model.hidden(tokens[:, at], positions[:, at], causal[:, :, at, :end], cache))
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)
    assert cache.get_seq_length() == 9


def test_branches_of_one_prompt_do_not_see_each_other():
    from transformers import DynamicCache

    model, cache = model_of("llama"), DynamicCache()
    prompt, ends = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[20, 30, 40]])
    causal = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    model.hidden(prompt, torch.arange(4)[None], causal[..., :4, :4], cache)
    own = torch.cat([torch.ones(3, 4), torch.eye(3)], 1).bool()[None, None]
    together = model.hidden(ends, torch.full((1, 3), 4), own, cache)[0]
    for branch in range(3):
        alone = model.hidden(torch.cat([prompt, ends[:, branch : branch + 1]], 1), torch.arange(5)[None], causal)
        torch.testing.assert_close(together[branch], alone[0, -1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_the_logits_of_a_group_are_a_part_of_all(lora):
    model = model_of("llama")
    if lora:
        adapt(model.backbone, lora, VOCABULARY)
    tokens = torch.arange(12)[None]
    hidden = model.hidden(tokens, tokens, torch.ones(12, 12, dtype=torch.bool).tril()[None, None])
    whole = model.backbone(input_ids=tokens).logits
    parts = [model.text_logits(hidden), *(model.level_logits(hidden, level) for level in range(3))]
    torch.testing.assert_close(torch.cat(parts, -1), whole)


def test_a_batch_without_responses_costs_nothing_and_has_a_gradient():
    model, batch = model_of("tiny"), packed(documents())
    loss = model.loss(batch._replace(targets=torch.full_like(batch.targets, -100)))
    loss.backward()
    assert loss == 0
    assert all(part.grad is not None for part in model.parameters())


def test_half_precision_stays_near():
    model, batch = model_of("llama"), packed(documents())
    half = backward(parallelise(model, "ddp", CPU, torch.bfloat16), [batch])
    assert half != float(model.loss(batch))
    assert half == pytest.approx(float(model.loss(batch)), rel=0.03)


@pytest.mark.parametrize(
    ("kind", "lora"), [("tiny", False), ("qwen2", False), ("llama", True), ("qwen3", True), ("gpt2", True)]
)
def test_an_artifact_gives_the_loss_of_what_was_trained(tmp_path, kind, lora):
    model, batch = model_of(kind), packed(documents())
    if lora:
        adapt(model.backbone, Lora(rank=2, alpha=2, dropout=0.0), VOCABULARY)
    module = parallelise(model, "ddp", CPU)
    train(module, [batch] * 2)
    save_generator(str(tmp_path), model, gather_state(module))
    loaded = load_generator(str(tmp_path))
    assert not loaded.training
    assert loaded.vocabulary.sizes == VOCABULARY.sizes
    assert not [name for name in loaded.state_dict() if "lora" in name]
    with evaluating(module) as trained:
        torch.testing.assert_close(loaded.loss(batch), trained.loss(batch), rtol=1e-5, atol=1e-5)
    assert not {path.suffix for path in tmp_path.rglob("*.*")} - {".json", ".safetensors"}


def test_a_damaged_artifact_is_named(tmp_path):
    model = model_of("tiny")
    state = gather_state(parallelise(model, "ddp", CPU))
    with pytest.raises(UserError, match="There is no "):
        load_generator(str(tmp_path))
    state.pop("backbone.model.norm.weight")
    save_generator(str(tmp_path), model, state)
    with pytest.raises(UserError, match=r"generator at .* is damaged or of another version"):
        load_generator(str(tmp_path))


def train(module: torch.nn.Module, batches: list[Batch]) -> list[float]:
    """A step of SGD per batch; the losses."""
    module.train()
    optimizer = torch.optim.SGD([part for part in module.parameters() if part.requires_grad], lr=0.1)
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        losses.append(backward(module, [batch]))
        optimizer.step()
    return losses


def shares(rank: int | None) -> list[Batch]:
    """Three steps of unequal shares, in the last of which the second rank has no response; None: all in one."""
    steps = []
    for seed, (first, second) in enumerate([(5, 2), (1, 6), (4, 3)]):
        found, rows = documents(first + second, seed), torch.arange(first + second)
        answered = rows if seed < 2 else rows[:first]
        mine = answered if rank is None else (rows[:first], rows[first:])[rank]
        batch = packed(gather(found, mine))
        if seed == 2 and rank == 1:
            batch.targets.fill_(-100)
            batch.weights.zero_()
        steps.append(batch)
    return steps


def on_two(rank: int | None, strategy: Strategy, kind: str, lora: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of three steps, and of a further batch then; the first rank's plain weights."""
    model = model_of(kind)
    if lora:
        adapt(model.backbone, Lora(rank=2, alpha=2, dropout=0.0), VOCABULARY)
    module = parallelise(model, strategy, CPU)
    losses = train(module, shares(rank))
    with evaluating(module) as trained:
        losses.append(float(trained.loss(packed(documents(seed=9)))))
    state = gather_state(module)
    return losses, model.plain(state) if state else {}


def test_two_workers_take_the_steps_of_one(tmp_path):
    calls: list[tuple[Strategy, str, bool]] = [
        ("ddp", "tiny", False),
        ("fsdp", "tiny", False),
        ("ddp", "llama", True),
        ("fsdp", "llama", True),
    ]
    for call, ((losses, state), (other, nothing)) in zip(calls, on_ranks(on_two, tmp_path, calls), strict=True):
        wanted, alone = on_two(None, *call)
        assert losses == pytest.approx(wanted, rel=1e-4)
        assert other == pytest.approx(wanted, rel=1e-4)
        torch.testing.assert_close(state, alone, rtol=1e-4, atol=1e-5)
        assert not nothing
