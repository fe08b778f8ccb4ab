"""Every backend that a definition may name, from its settings to the operator that runs."""

from __future__ import annotations

import dataclasses

import pytest

from operators.cached import CachedOperator
from storage.errors import UserError
from storage.identity import identity
from workflows.engine.definition import load, resolve
from workflows.stages.interpret import stage as interpret

CHATS = [
    {"backend": "huggingface", "model": "m", "dtype": "bfloat16", "max_new_tokens": 9},
    {
        "backend": "openai",
        "model": "m",
        "base_url": "http://h/v1",
        "api_key_env": "K",
        "concurrency": 3,
        "max_new_tokens": 9,
    },
    {"backend": "vllm", "model": "m", "max_model_len": 512},
]
SECTIONS = [
    *(("caption", {**chat, "prompt": "what?", "frames": "each"}) for chat in CHATS),
    *(("interests", {**chat, "prompt": "which?"}) for chat in CHATS),
    ("interests", {"backend": "smollm2", "max_new_tokens": 9}),
    ("image_embedding", {"backend": "sentence-transformers", "model": "m", "width": 8, "normalise": False}),
    ("text_embedding", {"backend": "sentence-transformers", "model": "m", "width": 8, "joint": True, "pooling": "cls"}),
    ("text_embedding", {"backend": "openai", "model": "m", "width": 8, "max_chars": 10, "request_width": True}),
]


def config(**sections):
    raw = {"name": "w", "catalog": "c", "stages": {"ingest": {}, "interpret": sections}}
    return resolve(raw, source="w").configs["interpret"]


def operator(found, name):
    step = next(step for step in interpret.steps(found, "c", None) if step.name == name)
    assert isinstance(step.operator, CachedOperator)
    return step.operator.operator


@pytest.mark.parametrize(("name", "section"), SECTIONS)
def test_every_setting_reaches_the_model(name, section):
    """Each is found again, by its name, in the operator or in a model inside it."""
    made, given = operator(config(**{name: section}), name), {k: v for k, v in section.items() if k != "backend"}

    def fields(value):
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            yield field.name, inner
            if dataclasses.is_dataclass(inner):
                yield from fields(inner)

    assert given.items() <= dict(fields(made)).items()


@pytest.mark.parametrize(("name", "section"), SECTIONS)
def test_settings_of_results_change_the_fingerprint_and_those_of_speed_do_not(name, section):
    before = config(**{name: section}).identity()
    assert config(**{name: {**section, "pool": {"min": 3}}}).identity() == before
    if "concurrency" in section:
        assert config(**{name: {**section, "concurrency": 9, "base_url": "http://elsewhere/v1"}}).identity() == before
    key = "model" if "model" in section else "max_new_tokens"
    other = "other" if key == "model" else 10
    assert config(**{name: {**section, key: other}}).identity() != before
    assert config().identity() != before


def test_the_schema_of_items_follows_the_widths():
    found = interpret.items_schema(config(text_embedding={"backend": "openai", "model": "m", "width": 7}))
    assert found.field("text_vector").type.list_size == 7
    assert found.names[:6] == ["item_id", "title", "description", "attributes", "caption", "interests"]


def test_a_definition_that_was_dumped_names_the_same_models(tmp_path):
    from workflows.engine.definition import dump

    raw = {"name": "w", "catalog": "c", "stages": {"ingest": {}, "interpret": dict(SECTIONS[:1])}}
    found = resolve(raw, source="w")
    (tmp_path / "w.yaml").write_text(dump(found))
    again = load(str(tmp_path / "w.yaml"), [])
    assert identity(operator(again.configs["interpret"], "caption")) == identity(
        operator(found.configs["interpret"], "caption")
    )


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"caption": {"backend": "openai"}}, "stages.interpret.caption.model is missing"),
        ({"caption": {"backend": "openai", "model": "m", "key": "k"}}, "unknown key stages.interpret.caption.key"),
        ({"caption": {"gate": {"budgt": 3}}}, "did you mean budget"),
        ({"caption": {"frames": "all"}}, "stages.interpret.caption.frames is 'all'"),
        ({"text_embedding": {"backend": "sentence-transformers", "model": "m"}}, "text_embedding.width is missing"),
        ({"interests": {"backend": "smolm2"}}, "choose one of keywords, smollm2"),
        ({"fetch": {"pool": {"min": 3, "max": 2}}}, "max: 2 is below min: 3"),
    ],
)
def test_a_wrong_setting_is_named(sections, says):
    with pytest.raises(UserError, match=says):
        config(**sections)
