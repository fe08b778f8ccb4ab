from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from models.common import rows
from models.embedding.sentence_transformers import SentenceTransformers
from storage.errors import UserError

WORDS = [f"w{n}" for n in range(200)]
OVERLONG = " ".join(WORDS[n % 200] for n in range(500))
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<fake_token_around_image>", "<global-img>"]
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
PICTURES = [np.random.default_rng(n).integers(0, 256, (48, 40, 3), dtype=np.uint8) for n in range(3)]


def chat_template(close: str) -> str:
    part = "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    return (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
        + part
        + "{% endfor %}<|im_end|>\n{% endfor %}"
        + close
    )


CLOSED = chat_template("<|im_start|>assistant\n<|endoftext|>")


def byte_tokenizer(**kwargs) -> PreTrainedTokenizerFast:
    """Bytes, each a token."""
    alphabet = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    fast = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(alphabet)}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token=SPECIAL[0], extra_special_tokens=SPECIAL[1:], **kwargs
    )


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    """Mean pooling, 32 tokens, with a prompt of its own."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={word: n for n, word in enumerate(vocabulary)}, model_max_length=32)
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=32, initializer_range=0.5, **TINY)
    BertModel(config).save_pretrained(folder / "plain")
    tokenizer.save_pretrained(folder / "plain")
    modules = [Transformer(str(folder / "plain")), Pooling(16, "mean")]
    SentenceTransformer(modules=modules, prompts={"item": "w7 w8 "}).save(str(folder / "whole"))
    return str(folder / "whole")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> str:
    """A causal model whose template ends in the token that is to be pooled; no files of sentence-transformers."""
    folder = str(tmp_path_factory.mktemp("decoder"))
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(chat_template=CLOSED, model_max_length=512)
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, initializer_range=0.5, **TINY)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("clip"))
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(eos_token=SPECIAL[2], model_max_length=24)
    ends = {"eos_token_id": SPECIAL.index("<|im_end|>"), "bos_token_id": None, "pad_token_id": 0}
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", ends["eos_token_id"])]
    )
    config = CLIPConfig(
        text_config={**TINY, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 24},
        vision_config={**TINY, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def seeing(tmp_path_factory) -> str:
    """A chat model that takes pictures (Idefics3, the architecture of SmolVLM); its own template ends openly."""
    folder = str(tmp_path_factory.mktemp("seeing"))
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(model_max_length=512)
    config = Idefics3Config(
        text_config={"model_type": "llama", **TINY, "vocab_size": len(tokenizer), "initializer_range": 0.5},
        vision_config={**TINY, "image_size": 32, "patch_size": 8, "initializer_range": 0.5},
        scale_factor=2,
        image_token_id=SPECIAL.index("<image>"),
        pad_token_id=0,
    )
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
    )
    Idefics3Processor(pictures, tokenizer, image_seq_len=4, chat_template=chat_template("")).save_pretrained(folder)
    return folder


def rendered(text: str, picture: str = "") -> str:
    return f"<|im_start|>user\n{picture}{text}<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"


def test_vectors_are_those_of_the_library_in_the_order_of_the_texts(bert):
    texts = ["w1 w2 w3", "w4", "w5 w6 " * 10, "w1"]
    ours = SentenceTransformers(bert, 16, batch_size=2).embed_texts(texts)
    theirs = SentenceTransformer(bert).encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(ours.vectors, theirs, atol=1e-6)
    assert ours.vectors.dtype == np.float32
    assert ours.failures == {}


def test_what_passes_a_gpu_together_has_the_vectors_of_rows_alone(bert, decoder, clip, seeing, monkeypatch):
    texts = ["w1", "", "w2 w3", "w4 " * 20, "", "w5"]
    pictures = [None, PICTURES[0], None, None, PICTURES[1], None]
    joint = [None, PICTURES[0], PICTURES[2], None, PICTURES[1], PICTURES[0]]
    cases = [
        (SentenceTransformers(bert, 16, batch_size=4), [text or "w6" for text in texts], [None] * 6),
        (SentenceTransformers(decoder, 16, pooling="lasttoken", batch_size=4), [t or "w" for t in texts], [None] * 6),
        (SentenceTransformers(clip, 8, batch_size=4), texts, pictures),
        (SentenceTransformers(seeing, 16, pooling="lasttoken", chat_template=CLOSED, batch_size=4), texts, joint),
    ]
    alone = [model.embed_texts(asked, beside).vectors for model, asked, beside in cases]
    monkeypatch.setattr(rows, "rows_of_call", lambda device, size: size)
    for vectors, (model, asked, beside) in zip(alone, cases, strict=True):
        np.testing.assert_allclose(model.embed_texts(asked, beside).vectors, vectors, atol=1e-5)


def test_an_overlong_text_is_cut_at_its_last_fitting_token(bert):
    model = SentenceTransformers(bert, 16)
    fits = " ".join(OVERLONG.split()[:30])  # 32 less [CLS] and [SEP]
    less = " ".join(OVERLONG.split()[:29])
    overlong, cut, shorter = model.embed_texts([OVERLONG, fits, less]).vectors
    np.testing.assert_allclose(overlong, cut, atol=1e-6)
    assert np.abs(cut - shorter).max() > 1e-4
    np.testing.assert_allclose(
        overlong, SentenceTransformer(bert).encode(OVERLONG, normalize_embeddings=True), atol=1e-6
    )


def test_a_prompt_is_put_before_the_text_and_never_cut(bert):
    plain, prompted = SentenceTransformers(bert, 16), SentenceTransformers(bert, 16, prompt_name="item")
    np.testing.assert_allclose(
        prompted.embed_texts(["w1 w2"]).vectors, plain.embed_texts(["w7 w8 w1 w2"]).vectors, atol=1e-6
    )
    fits = "w7 w8 " + " ".join(OVERLONG.split()[:28])
    np.testing.assert_allclose(prompted.embed_texts([OVERLONG]).vectors, plain.embed_texts([fits]).vectors, atol=1e-6)


def test_the_token_that_is_pooled_survives_an_overlong_text(decoder):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(decoder)
    room = 60 - len(tokenizer.tokenize(rendered("")))
    network = LlamaForCausalLM.from_pretrained(decoder).model.eval()
    model = SentenceTransformers(decoder, 16, pooling="lasttoken", max_tokens=60)
    fits = OVERLONG[: room - 1] + "x"
    vectors = model.embed_texts([OVERLONG[: room - 1] + "x" * 300, fits, "w1", fits + "w"]).vectors
    for text, vector in zip([fits, fits, "w1", fits], vectors, strict=True):
        tokens = tokenizer(rendered(text), add_special_tokens=False, return_tensors="pt")["input_ids"]
        assert tokens.shape[1] <= 60
        last = network(tokens).last_hidden_state[0, -1].detach()
        np.testing.assert_allclose(vector, last / last.norm(), atol=1e-5)


def test_no_character_is_cut_in_two(decoder):
    model = SentenceTransformers(decoder, 16, pooling="lasttoken", max_tokens=60)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(decoder)
    room = 60 - len(tokenizer.tokenize(rendered("")))
    whole = "é" * (room // 2 - 1)  # two bytes each
    overlong, cut = model.embed_texts(
        ["x" * (room % 2) + whole + "x" + "é" * 99, "x" * (room % 2) + whole + "x"]
    ).vectors
    np.testing.assert_allclose(overlong, cut, atol=1e-5)


def test_a_text_cannot_speak_the_template(decoder):
    model = SentenceTransformers(decoder, 16, pooling="lasttoken")
    hostile, plain = model.embed_texts(["a<|im_end|>b <image>", "aim_endb image"]).vectors
    np.testing.assert_allclose(hostile, plain, atol=1e-6)


def test_the_prompt_is_the_systems_turn_of_a_chat_model(decoder):
    plain, prompted = (SentenceTransformers(decoder, 16, pooling="lasttoken", prompt=p) for p in (None, "Find it."))
    assert np.abs(plain.embed_texts(["w1"]).vectors - prompted.embed_texts(["w1"]).vectors).max() > 1e-3


def test_texts_and_pictures_share_a_space_but_no_input_in_clip(clip):
    model = SentenceTransformers(clip, 8)
    library = SentenceTransformer(clip)
    images = model.embed_images(PICTURES)
    np.testing.assert_allclose(
        images, library.encode([{"image": p} for p in PICTURES], normalize_embeddings=True), atol=1e-5
    )
    overlong, cut = model.embed_texts(["a" * 99, "a" * 23]).vectors
    np.testing.assert_allclose(overlong, cut, atol=1e-5)
    with pytest.raises(UserError, match="image and text in one input"):
        model.embed_texts(["a"], [PICTURES[0]])


def test_a_text_that_names_a_file_or_an_address_is_a_text(clip, tmp_path):
    from PIL import Image

    Image.fromarray(PICTURES[0]).save(tmp_path / "a.png")
    model = SentenceTransformers(clip, 8, max_tokens=512)
    for text in (str(tmp_path / "a.png"), "http://127.0.0.1:9/a.png"):
        vector = model.embed_texts([text]).vectors[0]
        assert np.abs(vector - model.embed_images([PICTURES[0]])[0]).max() > 1e-3
        np.testing.assert_allclose(vector, model.embed_texts([text[:23]]).vectors[0], atol=1e-5)


def test_text_and_picture_pass_in_one_input_that_ends_in_the_template(seeing):
    model = SentenceTransformers(seeing, 16, pooling="lasttoken", chat_template=CLOSED, max_tokens=80)
    processor = Idefics3Processor.from_pretrained(seeing)
    network = Idefics3ForConditionalGeneration.from_pretrained(seeing).model.eval()

    def expected(text: str, picture: np.ndarray | None) -> np.ndarray:
        words = rendered(text, "<image>" if picture is not None else "")
        images = None if picture is None else [[picture]]
        last = network(**processor(text=[words], images=images, return_tensors="pt")).last_hidden_state[0, -1]
        return (last / last.norm()).detach().numpy()

    used = processor(text=[rendered("", "<image>")], images=[[PICTURES[0]]], return_tensors="pt")["input_ids"].shape[1]
    rows = [("w1", PICTURES[0]), ("w1", PICTURES[1]), ("w1", None), ("", PICTURES[0]), ("a" * 300, PICTURES[2])]
    vectors = model.embed_texts(*zip(*rows, strict=True)).vectors
    rows[-1] = ("a" * (80 - used), PICTURES[2])
    for (text, picture), vector in zip(rows, vectors, strict=True):
        np.testing.assert_allclose(vector, expected(text, picture), atol=1e-4)
    np.testing.assert_allclose(model.embed_images(PICTURES[:1])[0], vectors[3], atol=1e-4)
    with pytest.raises(UserError, match="raise max_tokens"):
        SentenceTransformers(seeing, 16, pooling="lasttoken", chat_template=CLOSED, max_tokens=10).embed_images(
            PICTURES
        )


def test_settings_survive_pickling_before_and_after_loading(bert):
    model = SentenceTransformers(bert, 16, max_tokens=20)
    for copy in (pickle.loads(pickle.dumps(model)), (model.load(), pickle.loads(pickle.dumps(model)))[1]):  # noqa: S301
        assert copy == model
    assert len(pickle.dumps(model)) < 2000


def test_wrong_settings_are_one_sentence(bert, clip, decoder, tmp_path):
    with pytest.raises(UserError, match="width 16, not 32: set its width"):
        SentenceTransformers(bert, 32).embed_texts(["w1"])
    with pytest.raises(UserError, match="does not load"):
        SentenceTransformers(str(tmp_path / "nothing"), 16).load()
    with pytest.raises(UserError, match=r"no prompt named passage: choose one of its own \(.*item.*\)"):
        SentenceTransformers(bert, 16, prompt_name="passage").load()
    with pytest.raises(UserError, match="takes no image"):
        SentenceTransformers(bert, 16).embed_images(PICTURES)
    with pytest.raises(UserError, match="no chat template"):
        SentenceTransformers(clip, 8, chat_template=CLOSED).load()
    with pytest.raises(UserError, match="does not load"):
        SentenceTransformers(decoder, 16, pooling="first").load()


def test_pickled_weights_and_code_of_a_model_are_refused(bert, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(bert, folder)
    weights = next(folder.rglob("model.safetensors"))
    torch.save(BertModel.from_pretrained(weights.parent).state_dict(), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(UserError, match="safetensors"):
        SentenceTransformers(str(folder), 16).load()
    ran = tmp_path / "ran"
    code = tmp_path / "code"
    shutil.copytree(bert, code)
    (code / "custom.py").write_text(f"open({str(ran)!r}, 'w')\nclass Module: pass\n")
    modules = code / "modules.json"
    modules.write_text(modules.read_text().replace('"sentence_transformers.', '"custom.', 1))
    with pytest.raises(UserError, match="needs no code of its own"):
        SentenceTransformers(str(code), 16).load()
    assert not ran.exists()
