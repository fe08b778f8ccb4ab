from __future__ import annotations

import os
import pickle
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models.chat import smollm2
from models.chat.base import Prompt
from models.chat.smollm2 import SmolLM2, smollm2_path
from storage.errors import UserError


@pytest.fixture(scope="session")
def unpacked() -> Iterator[Path]:
    """The real conversion, once: in the user's own cache where TESSEREC_CACHE names one."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESSEREC_CACHE", os.environ.get("TESSEREC_CACHE", folder))
        yield Path(smollm2_path())


def test_the_unpacked_model_answers_in_the_order_of_the_prompts(unpacked):
    chat = SmolLM2(max_new_tokens=12)
    chat.load()
    prompts = [Prompt(f"What is the capital of {land}?", "You are a helpful assistant.") for land in ("France", "Peru")]
    paris, lima = chat.complete(prompts)
    assert "Paris" in str(paris)
    assert "Lima" in str(lima)
    assert chat.complete(prompts[:1]) == [paris]


def test_the_cache_holds_safetensors_and_the_chat_template(unpacked):
    from transformers import AutoTokenizer

    names = {path.name for path in unpacked.iterdir()}
    assert "model.safetensors" in names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pkl", ".gguf"))}
    assert not list(unpacked.parent.glob("*.unfinished"))
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]
    text = AutoTokenizer.from_pretrained(unpacked).apply_chat_template(
        turns, add_generation_prompt=True, tokenize=False
    )
    wanted = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
    assert text == wanted


def test_one_process_unpacks_while_others_wait(tmp_path, monkeypatch):
    started: list[int] = []

    def unpack(package: Path, target: Path) -> None:
        started.append(threading.get_ident())
        time.sleep(0.2)
        target.mkdir()

    monkeypatch.setenv("TESSEREC_CACHE", str(tmp_path / "new"))
    monkeypatch.setattr(smollm2, "_unpack", unpack)
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: smollm2_path(), range(4)))
    assert len(set(paths)) == 1
    assert Path(paths[0]).parent == tmp_path / "new"
    assert len(started) == 1


def test_an_attempt_that_was_broken_off_is_made_again(tmp_path, monkeypatch):
    def killed(package: Path, target: Path) -> None:
        target.with_name(f"{target.name}.unfinished").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setenv("TESSEREC_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm2, "_unpack", killed)
    with pytest.raises(KeyboardInterrupt):
        smollm2_path()
    monkeypatch.setattr(smollm2, "_unpack", lambda package, target: target.mkdir())
    assert Path(smollm2_path()).is_dir()


def test_settings_do_nothing_until_they_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("TESSEREC_CACHE", str(tmp_path))
    assert pickle.loads(pickle.dumps(SmolLM2())) == SmolLM2()  # noqa: S301 - our own bytes
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TESSEREC_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="set TESSEREC_CACHE"):
        SmolLM2().load()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install"):
        SmolLM2().load()
