from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.qformer.decoder import IGNORED
from models.qformer.model import CaptionModel, load_captioner
from models.qformer.settings import Phase, PretrainedDecoder, Recipe
from models.qformer.tokens import EOS, SPECIAL
from models.qformer.training import Trainer
from models.qformer.vision import WIDTH
from storage.errors import ArtifactError
from tests.models.qformer.conftest import SMALL
from tests.models.qformer.planted import planted


def features(rows: int) -> torch.Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(3)).half()


def warm(model: CaptionModel) -> CaptionModel:
    """Weights large enough for captions that differ."""
    for parameter in model.parameters():
        parameter.data = parameter.data * 3
    return model


@torch.no_grad()
def test_the_loss_is_that_of_the_words_after_the_queries(model: CaptionModel) -> None:
    queries = model.see(features(2))
    text = model.decoder.encode(["red mug", "blue"])
    assert (text == IGNORED).any()
    losses = []
    for row, words in enumerate(text.tolist()):
        known = [word for word in words if word != IGNORED]
        prefix = model.decoder.enter(queries[row : row + 1])
        for place, word in enumerate(known):
            read = model.decoder.model.get_input_embeddings()(torch.tensor([known[:place]], dtype=torch.int64))
            logits = model.decoder.model(inputs_embeds=torch.cat([prefix, read], dim=1)).logits[0, -1]
            losses.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor(word))))
    assert float(model.decoder.loss(queries, text)) == pytest.approx(sum(losses) / len(losses), abs=1e-5)


@torch.no_grad()
def test_greedy_captions_are_the_likeliest_words_one_by_one(model: CaptionModel) -> None:
    queries = warm(model).see(features(3))
    for row, caption in enumerate(model.decoder.write(queries)):
        read, words = model.decoder.enter(queries[row : row + 1]), []
        while len(words) < model.config.text_tokens:
            word = int(model.decoder.model(inputs_embeds=read).logits[0, -1].argmax())
            if word == EOS:
                break
            words.append(word)
            read = torch.cat([read, model.decoder.model.get_input_embeddings()(torch.tensor([[word]]))], dim=1)
        assert caption == model.tokenizer.decode([word - SPECIAL for word in words if word >= SPECIAL]).strip()


@torch.no_grad()
def test_a_wider_search_finds_nothing_less_likely(model: CaptionModel) -> None:
    queries = warm(model).see(features(4))
    greedy, wide = model.decoder.write(queries), model.decoder.write(queries, beams=4)
    for row in range(4):
        own = queries[row : row + 1]
        losses = [float(model.decoder.loss(own, model.decoder.encode([text]))) for text in (greedy[row], wide[row])]
        assert losses[1] <= losses[0] + 1e-4 or greedy[row] == wide[row]


def test_a_frozen_language_model_stays_as_it_is_and_out_of_the_artifact(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A pretrained model with a tokenizer of its own, which puts a token before every text."""
    marks = {"eos_token": "</s>", "bos_token": "<s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.to_str()), **marks)
    fast.save_pretrained(tmp_path / "llm")
    sizes_of_llm = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"eos_token_id": fast.eos_token_id, "bos_token_id": fast.bos_token_id}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(fast), **sizes_of_llm, **ends)).save_pretrained(tmp_path / "llm")
    sizes = SMALL.model_copy(update={"decoder": PretrainedDecoder(name="pretrained", model=str(tmp_path / "llm"))})
    model = CaptionModel(sizes, tokenizer)
    assert model.decoder.frozen
    text = model.decoder.encode(["red mug", "blue"])
    assert (text == fast.bos_token_id).sum() == 0
    assert (text == fast.eos_token_id).sum(1).tolist() == [1, 1]
    data, _ = planted(model, 32)
    states: list[dict[str, torch.Tensor]] = []
    before = {name: value.clone() for name, value in model.decoder.model.state_dict().items()}
    phase = Phase(steps=6, batch_size=8, validate_every=3)
    recipe = Recipe(align=phase.model_copy(update={"steps": 3}), write=phase, texts=2)
    Trainer(model, data, recipe, seed=1).run(lambda metrics, take: states.append(take()))
    assert all(torch.equal(value, before[name]) for name, value in model.decoder.model.state_dict().items())
    assert not any("decoder.model." in name for name in [*states[-1], *model.own_state()])
    again = CaptionModel(sizes, tokenizer)
    again.decoder.enter.load_state_dict(model.decoder.enter.state_dict())
    Trainer(again, data, recipe, seed=1, state=states[1]).run(lambda metrics, take: None)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    model.save(str(tmp_path / "captioner"))
    loaded = load_captioner(str(tmp_path / "captioner"))
    queries = loaded.see(features(2))
    assert len(loaded.decoder.write(queries, beams=2)) == 2


@torch.no_grad()
def test_an_artifact_comes_back(model: CaptionModel, tmp_path: Path) -> None:
    warm(model).half().float().save(str(tmp_path))
    again = load_captioner(str(tmp_path))
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert again.config == model.config
    queries = model.see(features(3))
    assert torch.equal(again.see(features(3)), queries)
    assert again.decoder.write(queries) == model.decoder.write(queries)
    texts = model.encode(["red mug"])
    assert torch.equal(again.text_vectors(texts), model.text_vectors(texts))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"x" * 100], ids=["missing", "empty", "json", "noise"])
def test_a_damaged_artifact_says_so(model: CaptionModel, tmp_path: Path, name: str, content: bytes | None) -> None:
    model.save(str(tmp_path))
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError):
        load_captioner(str(tmp_path))


def test_an_artifact_with_another_part_is_of_another_version(model: CaptionModel) -> None:
    state = model.own_state()
    with pytest.raises(ValueError, match="log_scale"):
        model.load_own_state({name: value for name, value in state.items() if name != "log_scale"})
    with pytest.raises(ValueError, match="foreign"):
        model.load_own_state({**state, "foreign": torch.zeros(1)})
