from __future__ import annotations

import functools
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from models.chat import huggingface
from models.chat.base import Prompt
from models.chat.huggingface import HuggingFaceChat
from storage.errors import UserError

SPECIAL = (
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SPECIAL += ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<|endoftext|>")
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "initializer_range": 0.4, "max_position_embeddings": 4096}
SEEING = ("qwen2_5_vl", "idefics3")


def template(picture: str) -> str:
    """ChatML; texts come as strings or as lists of parts."""
    parts = (
        "{% for part in m.content %}{% if part.type == 'image' %}" + picture + "{% else %}{{ part.text }}{% endif %}"
    )
    content = "{% if m.content is string %}{{ m.content }}{% else %}" + parts + "{% endfor %}{% endif %}"
    turn = "{% for m in messages %}<|im_start|>{{ m.role }}\n" + content + "<|im_end|>\n{% endfor %}"
    return turn + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def tokenizer(chat_template: str | None):
    """Bytes, each a token."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        token: number for number, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    fast = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    named = {"pad_token": SPECIAL[0], "eos_token": "<|im_end|>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=fast, extra_special_tokens=list(SPECIAL[1:]), **named)
    wrapped.chat_template = chat_template
    return wrapped


def ids(words) -> dict[str, int]:
    return {
        "vocab_size": len(words),
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": SPECIAL.index("<|im_end|>"),
    }


def qwen2_5_vl(folder: Path) -> None:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    words = tokenizer(template("<|vision_start|><|image_pad|><|vision_end|>"))
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"fullatt_block_indexes": [1], "initializer_range": 0.2}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    names |= {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, **ids(words), "rope_parameters": rope},
        vision_config=vision,
        **{f"{name}_token_id": SPECIAL.index(token) for name, token in names.items()},
    )
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}).save_pretrained(folder)
    words.save_pretrained(folder)


def idefics3(folder: Path) -> None:
    """The architecture of SmolVLM."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    words = tokenizer(template("<image>"))
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8, "initializer_range": 0.2}
    config = Idefics3Config(
        text_config={"model_type": "llama", **TEXT, **ids(words)},
        vision_config=vision,
        scale_factor=2,
        image_token_id=SPECIAL.index("<image>"),
    )
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
    )
    Idefics3Processor(pictures, words, image_seq_len=4, chat_template=words.chat_template).save_pretrained(folder)


def blip_2(folder: Path, encoder_decoder: bool = False) -> None:
    """No chat template. With T5, the prompt is encoded, and not part of what is decoded."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    words = tokenizer(None)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.4, **small, **ids(words)}
    if encoder_decoder:
        text = {"model_type": "t5", "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, **ids(words)}
        text |= {"initializer_factor": 4.0, "tie_word_embeddings": False}
    config = Blip2Config(
        vision_config={**small, "image_size": 28, "patch_size": 14, "initializer_range": 0.2},
        qformer_config={**small, "encoder_hidden_size": 32, "initializer_range": 0.2},
        text_config={**text, "bos_token_id": 1},
        num_query_tokens=3,
        image_token_index=SPECIAL.index("<image>"),
    )
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    processor = Blip2Processor(BlipImageProcessorPil(size={"height": 28, "width": 28}), words, num_query_tokens=3)
    processor.save_pretrained(folder)


def qwen2(folder: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    words = tokenizer(template(""))
    Qwen2ForCausalLM(Qwen2Config(**TEXT, **ids(words))).save_pretrained(folder)
    words.save_pretrained(folder)


MODELS: dict[str, Callable[[Path], None]] = {
    "qwen2_5_vl": qwen2_5_vl,
    "idefics3": idefics3,
    "blip_2": blip_2,
    "blip_2_t5": functools.partial(blip_2, encoder_decoder=True),
    "qwen2": qwen2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Callable[[str], str]:
    made: dict[str, str] = {}

    def make(name: str) -> str:
        if name not in made:
            torch.manual_seed(0)
            path = tmp_path_factory.mktemp(name)
            MODELS[name](path)
            made[name] = str(path)
        return made[name]

    return make


def picture(seed: int, height: int = 40, width: int = 56) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


MIXED = [
    Prompt("describe it", images=(picture(1),)),
    Prompt("hello"),
    Prompt("describe the other one, at some length", system="be brief", images=(picture(2, 90, 30),)),
    Prompt("what do they share", images=(picture(3), picture(4, 30, 30))),
    Prompt("another text without any picture", system="be brief"),
    Prompt("describe it", images=(picture(5, 28, 64),)),
]
ONE_EACH = [prompt for prompt in MIXED if len(prompt.images) == 1]
TEXTS = [prompt for prompt in MIXED if not prompt.images]


@pytest.mark.parametrize(
    ("name", "prompts"),
    [("qwen2_5_vl", MIXED), ("idefics3", MIXED), ("blip_2", ONE_EACH), ("blip_2_t5", ONE_EACH), ("qwen2", TEXTS)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_batch_is_answered_as_its_prompts_one_by_one(folder, name, prompts):
    chat = HuggingFaceChat(folder(name), max_new_tokens=12)
    alone = [answer for prompt in prompts for answer in chat.complete([prompt])]
    assert chat.complete(prompts) == alone
    assert chat.complete(prompts[::-1]) == alone[::-1]
    assert len(set(alone)) == len(prompts), "answers depend on the prompt"
    assert not any(prompt.text in answer for prompt, answer in zip(prompts, alone, strict=True))
    assert not any(token in answer for answer in alone for token in SPECIAL)


@pytest.mark.parametrize("name", [*SEEING, "blip_2"])
def test_the_picture_decides_the_answer(folder, name):
    chat = HuggingFaceChat(folder(name), max_new_tokens=12)
    answers = chat.complete([Prompt("describe it", images=(picture(seed),)) for seed in (1, 2, 1)])
    assert answers[0] == answers[2] != answers[1]


def test_answers_are_no_longer_than_asked_for(folder):
    name = folder("qwen2")
    (longer,), (shorter,) = (HuggingFaceChat(name, max_new_tokens=n).complete(TEXTS[:1]) for n in (12, 3))
    assert 0 < len(shorter) <= 3, "a token is a byte"
    assert longer.startswith(shorter.rstrip("\ufffd"))


def test_a_checkpoints_sampling_is_not_followed(folder, tmp_path):
    """Checkpoints ship settings for chat; results must not change from call to call."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder("qwen2"))
    model.generation_config.update(do_sample=True, temperature=5.0, top_k=50, top_p=0.9)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder("qwen2")).save_pretrained(tmp_path)
    assert HuggingFaceChat(str(tmp_path)).complete(TEXTS) == HuggingFaceChat(folder("qwen2")).complete(TEXTS)


def test_weights_are_loaded_once_and_stay_out_of_the_pickle(folder):
    chat = HuggingFaceChat(folder("qwen2"))
    before = pickle.dumps(chat)
    chat.load()
    assert pickle.dumps(chat) == before
    assert pickle.loads(before) == chat  # noqa: S301 - our own bytes
    known = huggingface._load.cache_info().misses
    HuggingFaceChat(folder("qwen2"), max_new_tokens=3).load()
    assert huggingface._load.cache_info().misses == known


def test_a_model_without_eyes_refuses_pictures(folder):
    with pytest.raises(UserError, match="takes no pictures"):
        HuggingFaceChat(folder("qwen2")).complete(MIXED)


def test_models_that_cannot_be_used_are_named_with_the_reason(folder, tmp_path):
    with pytest.raises(UserError, match="There is no model"):
        HuggingFaceChat(str(tmp_path / "nowhere")).load()

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "foreign", "auto_map": {"AutoConfig": "code.C"}}')
    (foreign / "code.py").write_text("raise SystemExit('run')")
    with pytest.raises(UserError, match="does not know"):
        HuggingFaceChat(str(foreign)).load()

    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match="writes no text"):
        HuggingFaceChat(str(encoder)).load()

    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((Path(folder("qwen2")) / "config.json").read_text())
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        HuggingFaceChat(str(pickled)).load()

    mute = tmp_path / "mute"
    shutil.copytree(folder("qwen2_5_vl"), mute)
    (mute / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="processor does not load"):
        HuggingFaceChat(str(mute)).load()


def test_a_batch_that_does_not_fit_may_be_halved_and_one_prompt_that_does_not_says_so(folder, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(huggingface, "_generate", full)
    with pytest.raises(torch.OutOfMemoryError):
        HuggingFaceChat(folder("qwen2")).complete(TEXTS)
    with pytest.raises(UserError, match="do not fit into the GPU's memory"):
        HuggingFaceChat(folder("qwen2")).complete(TEXTS[:1])


@pytest.mark.parametrize("name", ["qwen2", "qwen2_5_vl"])
def test_special_tokens_in_a_text_are_words_and_no_more(folder, name):
    chat = HuggingFaceChat(folder(name), max_new_tokens=8)
    chat.load()
    loaded = huggingface._load(chat.model, None, "auto", "auto")
    token = next(token.content for token in loaded.processor.added_tokens_decoder.values()) if name == "qwen2" else None
    token = token or "<|image_pad|>"
    bare = re.sub(r"\W", "", token)
    assert chat.complete([Prompt(f"red {token} shoe")]) == chat.complete([Prompt(f"red {bare} shoe")])
