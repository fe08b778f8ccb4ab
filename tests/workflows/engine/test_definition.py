from __future__ import annotations

import pytest
import yaml

from storage.errors import UserError
from workflows.engine import definition

MINIMAL = {"name": "mine", "catalog": "data", "stages": {"ingest": None}}
FEATURES = {"ingest": None, "interpret": None, "project": None, "quantize": None, "features": None}


@pytest.fixture
def write(tmp_path):
    def write(content) -> str:
        path = tmp_path / "w.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(path)

    return write


def test_overrides_reach_any_key_and_values_are_yaml(write):
    overrides = ["seed=7", "stages.project.weights.text=0.5", "stages.interpret.fetch.pool={min: 3}"]
    raw = {**MINIMAL, "stages": {"ingest": None, "interpret": {"commit_rows": 9}, "project": None}}
    found = definition.load(write(raw), overrides)
    assert found.seed == 7
    assert found.configs["project"].weights.text == 0.5
    assert found.configs["interpret"].fetch.pool.min == 3
    assert found.configs["interpret"].commit_rows == 9


def test_the_resolved_definition_resolves_to_itself(write):
    raw = {**MINIMAL, "seed": 3, "stages": {"ingest": None, "interpret": None, "project": {"width": 8}}}
    found = definition.load(write(raw), ["split.kind=leave_last"])
    again = definition.load(write(definition.dump(found)), [])
    assert (again.seed, again.split, again.configs) == (found.seed, found.split, found.configs)
    assert (found.seed, found.split.kind) == (3, "leave_last")


def test_a_stage_that_is_not_named_does_not_run(write):
    assert list(definition.load(write(MINIMAL), []).configs) == ["ingest"]


@pytest.mark.parametrize(
    ("raw", "overrides", "says"),
    [
        ({**MINIMAL, "sead": 1}, [], "unknown key sead; did you mean seed?"),
        ({**MINIMAL, "stages": {"ingst": None}}, [], "unknown key stages.ingst; did you mean ingest?"),
        (
            {**MINIMAL, "stages": {"ingest": None, "interpret": {"caption": {"pool": {"maks": 2}}}}},
            [],
            "unknown key stages.interpret.caption.pool.maks; did you mean max?",
        ),
        ({"name": "mine", "stages": {"ingest": None}}, [], "the key catalog is missing"),
        ({**MINIMAL, "stages": {}}, [], "name at least ingest"),
        ({**MINIMAL, "stages": {"interpret": None}}, [], "add ingest to stages"),
        ({**MINIMAL, "seed": "many"}, [], "seed is 'many'"),
        ({**MINIMAL, "split": {"kind": "last"}}, [], "split.kind is 'last': choose one of time, leave_last"),
        ({**MINIMAL, "split": {"kind": "time", "vald": 0.2}}, [], "unknown key split.vald; did you mean valid?"),
        ({**MINIMAL, "split": {"kind": "time", "valid": 0.5, "test": 0.5}}, [], "valid + test must stay below 1"),
        (MINIMAL, ["split.valid=0.2"], "the key split.kind is missing"),
        (
            {**MINIMAL, "stages": {**FEATURES, "features": {"split": {"kind": "leave_last"}}}},
            [],
            "unknown key stages.features.split; write split at the top of the definition",
        ),
        (
            {**MINIMAL, "stages": FEATURES},
            ["stages.quantize.collaborative.split.kind=leave_last"],
            "unknown key stages.quantize.collaborative.split; write split at the top of the definition",
        ),
        (
            MINIMAL,
            ["stages.evidence.seeds=2"],
            "stages.evidence is of an earlier version; write stages.ablate_features in",
        ),
        (
            {**MINIMAL, "stages": FEATURES},
            ["stages.quantize.max_digits=9"],
            "stages.quantize.max_digits is of an earlier version; write max_suffixes in its place.",
        ),
        (
            {**MINIMAL, "stages": FEATURES},
            ["stages.quantize.gradient=rotation"],
            "stages.quantize.gradient is of an earlier version; leave it out.",
        ),
        (
            {**MINIMAL, "stages": {**FEATURES, "generate": {}}},
            ["stages.generate.product_codes.model.objective=codes"],
            "stages.generate.product_codes.model.objective is of an earlier version; leave it out.",
        ),
        (
            {**MINIMAL, "stages": FEATURES},
            ["stages.quantize.collisions=always_digit"],
            "stages.quantize.collisions: always_digit is of an earlier version; write always_suffix in its place.",
        ),
        (
            {**MINIMAL, "stages": {**FEATURES, "generate": {}}},
            ["stages.generate.language_model.schedule=staged"],
            "language_model.schedule: staged is of an earlier version; write content_first in its place.",
        ),
        (MINIMAL, ["seed"], "must have the form key=value"),
        (MINIMAL, ["seed=[1"], "not valid YAML"),
        (MINIMAL, ["name=2026-13-45"], "not valid YAML"),
        (MINIMAL, ["seed=abc"], "seed is 'abc'"),
        (MINIMAL, ["name.deeper=1"], "goes deeper"),
        (MINIMAL, ["stages.ingest.max_reject_share=2"], "less than or equal to 1"),
        ("just text", [], "must be a YAML mapping"),
        ("a: [", [], "not valid YAML"),
        ("name: w\nseed: 1\nname: v\n", [], "has name twice, on lines 1 and 3: keep one"),
        ("name: w\nstages: {ingest: {media: a, media: b}}\n", [], "has media twice, on lines 2 and 2: keep one"),
    ],
)
def test_mistakes_are_one_sentence_that_says_what_to_write(write, raw, overrides, says):
    with pytest.raises(UserError) as caught:
        definition.load(write(raw), overrides)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"no workflow definition at nope\.yaml"):
        definition.load("nope.yaml", [])


def test_every_key_knows_where_it_was_written(write):
    text = "name: mine\ncatalog: data\nstages:\n  ingest:\n  interpret:\n    caption:\n      pool: {min: 2}\n"
    path = write(text)
    found = definition.load(path, ["stages.interpret.fetch.pool={min: 3}"])
    assert found.where("stages.interpret.caption.pool") == f"{path}:7"
    assert found.where("stages.interpret.text_embedding.pool") == f"{path}:5"  # the nearest that was written
    assert found.where("stages.interpret.fetch.pool.min") == "--set stages.interpret.fetch.pool"


def test_a_long_history_needs_semantic_ids():
    stages = {**dict.fromkeys(["ingest", "interpret"]), "features": {"long_history": 20}}
    with pytest.raises(UserError, match="stage features reads what quantize writes: add quantize to stages"):
        definition.resolve({"name": "x", "catalog": "c", "stages": stages}, "w.yaml")


def test_evaluate_needs_a_ranker_or_a_generator():
    stages = dict.fromkeys(["ingest", "interpret", "project", "evaluate"])
    with pytest.raises(UserError, match="reads what rank or generate writes: add one of them to stages"):
        definition.resolve({"name": "x", "catalog": "c", "stages": stages}, "w.yaml")
