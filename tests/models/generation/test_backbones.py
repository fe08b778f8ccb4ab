from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from models.generation.backbones import Backbone, Lora, Pretrained, Tiny, build, load_tokenizer
from models.generation.vocabulary import Vocabulary
from storage.errors import UserError

SIZES = (16, 12, 4)
TEXT = Vocabulary.trained(SIZES, ["a lamp of oak", "a chair of ash"], 290)
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def saved(folder: Path, kind: str, rows: int = 300, **others: Any) -> Path:
    """A random model of transformers with a tokenizer, whose matrix has more rows than that."""
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SMALL, **others}, vocab_size=rows, initializer_range=0.3)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=TEXT.text, eos_token="<eos>").save_pretrained(folder)  # noqa: S106
    return folder


def vocabulary_of(settings: Pretrained) -> Vocabulary:
    tokenizer, rows = load_tokenizer(settings)
    return Vocabulary.extended(SIZES, tokenizer, rows)


def spread(rows: torch.Tensor) -> float:
    return float((rows - rows.mean(0)).norm(dim=1).mean())


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_lie_about_the_mean_of_text_and_leave_it_alone(tmp_path, tied):
    from transformers import AutoModelForCausalLM

    settings = Pretrained(name="pretrained", model=str(saved(tmp_path, "llama", tie_word_embeddings=tied)))
    vocabulary = vocabulary_of(settings)
    assert vocabulary.sid_start == 300
    before, after = AutoModelForCausalLM.from_pretrained(tmp_path), build(settings, vocabulary, seed=1)
    parts = [(model.get_input_embeddings().weight, model.get_output_embeddings().weight) for model in (before, after)]
    assert (parts[1][0] is parts[1][1]) == tied
    for old, new in zip(*parts, strict=True):
        assert len(new) == 332
        assert torch.equal(old, new[:300])
        known = old[: len(TEXT.text.get_vocab())]
        assert (new[300:].mean(0) - known.mean(0)).norm() < 0.1 * spread(known)
        assert spread(new[300:]) == pytest.approx(spread(known) / 8, rel=0.2)
    again, other = (build(settings, vocabulary, seed=seed).get_input_embeddings().weight for seed in (1, 2))
    assert torch.equal(parts[1][0], again)
    assert not torch.equal(parts[1][0], other)


def test_smollm2_begins_at_the_log_of_a_levels_size():
    settings = TypeAdapter(Backbone).validate_python({"name": "smollm2"})
    vocabulary = Vocabulary.extended((256, 256), *load_tokenizer(settings))
    backbone = build(settings, vocabulary).eval()
    tokens = vocabulary.encode(["Which item is titled The Lord of the Rings? It is"], max_tokens=50).values
    with torch.no_grad():
        logits = backbone(input_ids=tokens[None]).logits[0, -1]
    for level in range(2):
        log_probs = logits[vocabulary.start(level) :][:256].log_softmax(0)
        assert -float(log_probs.mean()) == pytest.approx(5.545, abs=0.2)


@pytest.mark.parametrize("tied", [True, False])
def test_lora_trains_adapters_and_new_rows_alone(tmp_path, tied):
    settings = Pretrained(name="pretrained", model=str(saved(tmp_path, "llama", tie_word_embeddings=tied)))
    vocabulary = vocabulary_of(settings)
    backbone = build(settings.model_copy(update={"lora": Lora(rank=2)}), vocabulary, seed=1)
    plain = build(settings, vocabulary, seed=1)
    tokens = torch.tensor([[5, 6, 310, 320, 330, 7]])
    torch.testing.assert_close(backbone(input_ids=tokens).logits, plain(input_ids=tokens).logits)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    optimizer = torch.optim.AdamW([part for part in backbone.parameters() if part.requires_grad], 0.1, weight_decay=0.1)
    for _ in range(2):  # in the first one half of the adapters is zero
        optimizer.zero_grad()
        backbone(input_ids=tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None]).mean().neg().backward()
        optimizer.step()
    moved = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {
        name
        for name, _ in backbone.named_parameters(remove_duplicate=False)
        if "lora" in name or "tokens_delta" in name
    }
    assert sum("lora" in name for name in moved) == 2 * 2 * 7
    for part, old in (
        (backbone.get_input_embeddings(), plain.get_input_embeddings()),
        (backbone.get_output_embeddings(), plain.get_output_embeddings()),
    ):
        assert torch.equal(part.weight[:300], old.weight[:300])
        assert not torch.isclose(part.weight[300:], old.weight[300:]).all(1).any()


def test_half_precision_weights_are_for_what_lora_leaves_alone(tmp_path):
    folder = str(saved(tmp_path, "llama"))
    with pytest.raises(ValidationError, match="float32, or set lora"):
        Pretrained(name="pretrained", model=folder, dtype="bfloat16")
    settings = Pretrained(name="pretrained", model=folder, dtype="bfloat16", lora=Lora())
    trained, frozen = set(), set()
    for part in build(settings, vocabulary_of(settings)).parameters():
        (trained if part.requires_grad else frozen).add(part.dtype)
    assert trained == {torch.float32}
    assert frozen == {torch.bfloat16}


def test_tiny_drops_out_of_embeddings_and_sublayers_only_while_it_trains():
    vocabulary = Vocabulary.sequence_only(SIZES)
    settings = Tiny(layers=3, dim=16, heads=2, mlp=32, dropout=0.5)
    model, without = build(settings, vocabulary), build(settings.model_copy(update={"dropout": 0.0}), vocabulary)
    zeros = []
    for part in (model.model.embed_tokens, model.model.layers[2].self_attn.o_proj, model.model.layers[2].mlp.down_proj):
        part.register_forward_hook(lambda *arguments: zeros.append(float((arguments[2] == 0).float().mean())))
    tokens = torch.randint(3, vocabulary.size, (4, 50))
    assert not torch.equal(model(input_ids=tokens).logits, model(input_ids=tokens).logits)
    assert zeros == pytest.approx([0.5] * 6, abs=0.1)
    zeros.clear()
    assert torch.equal(model.eval()(input_ids=tokens).logits, without(input_ids=tokens).logits)
    assert max(zeros) == 0


def test_tiny_is_drawn_by_its_seed_alone():
    vocabulary = Vocabulary.sequence_only(SIZES)
    torch.manual_seed(5)
    first = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (build(Tiny(), vocabulary, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), first)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(ValidationError, match="multiple of twice the heads, 6"):
        TypeAdapter(Backbone).validate_python({"name": "tiny", "dim": 128, "heads": 3})


@pytest.mark.parametrize(
    ("kind", "others", "words"),
    [
        ("mamba", {"state_size": 4}, "mamba"),
        ("granite", {"logits_scaling": 8.0}, "no plain output matrix"),
        ("bloom", {"n_head": 2, "n_layer": 1}, "bloom|mask|sdpa"),
    ],
)
def test_models_that_cannot_be_trained_on_packed_documents_are_refused(tmp_path, kind, others, words):
    settings = Pretrained(name="pretrained", model=str(saved(tmp_path, kind, **others)))
    with pytest.raises(UserError, match=words):
        build(settings, vocabulary_of(settings))


def test_what_is_no_model_is_named(tmp_path):
    def settings(folder: Path) -> Pretrained:
        return Pretrained(name="pretrained", model=str(folder))

    with pytest.raises(UserError, match="no model"):
        load_tokenizer(settings(tmp_path / "none"))
    sound = saved(tmp_path / "sound", "llama")
    (sound / "model.safetensors").rename(sound / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        build(settings(sound), vocabulary_of(settings(sound)))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match="no causal language model"):
        load_tokenizer(settings(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "of-tomorrow"}')
    with pytest.raises(UserError, match="does not know"):
        load_tokenizer(settings(tmp_path))


def test_a_folder_is_found_from_wherever_a_worker_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Pretrained(name="pretrained", model="./mine").model == str(tmp_path / "mine")
    assert Pretrained(name="pretrained", model="Qwen/Qwen3-0.6B").model == "Qwen/Qwen3-0.6B"
