from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from serving.api.routes import as_impression
from serving.filters import Condition
from serving.pipeline import Pipeline
from serving.query import Query, Scored
from serving.rerank import exposure, rules
from storage import files
from storage.errors import UserError
from storage.run import RunDir
from tests.serving.finished import DAY_US, store_of

DOCS = Path(__file__).parents[3] / "docs" / "serving.md"


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(rules, "LOOK_SECONDS", 0.0)
    return tmp_path / "rules.yaml"


@pytest.fixture(scope="module")
def plain(finished_run) -> Pipeline:
    return Pipeline(finished_run, store_of(finished_run))


def ruled(run: RunDir, file: Path, text: str) -> Pipeline:
    file.write_text(text)
    return Pipeline(run, store_of(run), rules=str(file))


def answered(pipeline: Pipeline, **query: object) -> list[Scored]:
    return pipeline.recommend([Query(history=["item 3", "item 8"], **query)])[0].items


def ids(items: list[Scored]) -> list[str]:
    return [item.item_id for item in items]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("boosts: [", "rules.yaml is not valid YAML"),
        ("- pins", "rules.yaml must be a YAML mapping with keys such as boosts, pins and caps."),
        ("\npin: []", "rules.yaml:2: unknown key pin; did you mean pins?"),
        ("diversity: 2", "rules.yaml:1: diversity is 2: input should be less than or equal to 1."),
        ("pins:\n- item: a\n  position: 0", "rules.yaml:3: pins.0.position is 0: input should be greater than or"),
        ("pins:\n- {item: 7, position: 1}", "rules.yaml:2: pins.0.item is 7: input should be a valid string."),
        (
            "boosts:\n- factor: 2\n  where:\n    not:\n      atribute: kind\n      in: ['1']",
            "rules.yaml:5: unknown key boosts.0.where.not.atribute; did you mean attribute?",
        ),
        (
            "boosts:\n- where: {attribute: kind}",
            "rules.yaml:2: boosts.0.where is {'attribute': 'kind'}: a condition has either in, or at_least or",
        ),
        ("caps:\n- attribute: kinds\n  most: 2", "rules.yaml:2: no item has an attribute 'kinds'; did you mean kind?"),
        (
            "objectives:\n  relevance: 1\n  novelt: 1",
            "rules.yaml:3: no item has an attribute 'novelt'; did you mean nov",
        ),
        ("objectives: {zzz: 1}", "no item has an attribute 'zzz'; GET /v1/attributes names some that there are."),
        ("objectives: {novelty: 0}", "rules.yaml:1: objectives is {'novelty': 0}: give one of the objectives a weight"),
        ("exposure: {target: 0.1, dais: 3}", "unknown key exposure.dais; did you mean days?"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_line(plain, file, text, sentence) -> None:
    file.write_text(text)
    with pytest.raises(UserError, match=re.escape(sentence)):
        rules.read_rules(str(file), plain.catalogue)


def test_an_attribute_without_numbers_is_no_objective(plain, file) -> None:
    file.write_text("objectives: {kind: 1}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain.catalogue, "has_numbers", lambda name: False)
        with pytest.raises(UserError, match="kind of no item is a number: leave this objective out"):
            rules.read_rules(str(file), plain.catalogue)


def test_the_service_does_not_start_with_a_broken_file(finished_run, file) -> None:
    with pytest.raises(UserError, match="There is no file of rules at"):
        Pipeline(finished_run, store_of(finished_run), rules=str(file))


@pytest.mark.parametrize("text", ["", "objectives: {relevance: 2}"])
def test_rules_that_ask_for_nothing_change_nothing(finished_run, plain, file, text) -> None:
    pipeline = ruled(finished_run, file, text)
    queries = [Query(user_id="user 1"), Query(k=3), Query(history=["item 4"], k=100, explain=True)]
    assert pipeline.recommend(queries) == plain.recommend(queries)


def test_the_file_is_read_again_and_a_broken_one_changes_nothing(finished_run, plain, file, caplog) -> None:
    pipeline = ruled(finished_run, file, "pins: [{item: item 50, position: 2}]")
    assert ids(answered(pipeline))[1] == "item 50"
    file.write_text("pins: [{item: item 51, position: 2}]  # another")
    assert ids(answered(pipeline))[1] == "item 51"
    assert pipeline.warning is None
    file.write_text("pins: [{item: item 52}]")
    assert ids(answered(pipeline))[1] == "item 51"
    assert pipeline.warning == rules.BROKEN
    assert caplog.messages[-1] == f"The rules of before hold: {file}:1: the key pins.0.position is missing."
    seen = len(caplog.messages)
    answered(pipeline)
    assert len(caplog.messages) == seen  # it is told once
    file.unlink()
    assert ids(answered(pipeline))[1] == "item 51"
    assert "There is no file of rules" in caplog.messages[-1]
    file.write_text("")
    assert answered(pipeline) == answered(plain)
    assert pipeline.warning is None


def test_a_file_in_an_object_store_is_read_again_too(finished_run, file) -> None:
    uri = "memory://rules/rules.yaml"
    files.write_bytes(uri, b"pins: [{item: item 50, position: 2}]")
    pipeline = Pipeline(finished_run, store_of(finished_run), rules=uri)
    assert ids(answered(pipeline))[1] == "item 50"
    files.write_bytes(uri, b"pins: [{item: item 51, position: 2}]")
    assert ids(answered(pipeline))[1] == "item 51"
    files.remove(uri)
    assert ids(answered(pipeline))[1] == "item 51"
    assert pipeline.warning == rules.BROKEN


def test_the_file_is_looked_at_once_a_second(finished_run, plain, file, monkeypatch) -> None:
    monkeypatch.setattr(rules, "LOOK_SECONDS", 3600.0)
    pipeline = ruled(finished_run, file, "")
    file.write_text("pins: [{item: item 50, position: 1}]")
    assert answered(pipeline) == answered(plain)


def test_boosts(finished_run, plain, file) -> None:
    pipeline = ruled(
        finished_run,
        file,
        "boosts: [{where: {attribute: kind, in: ['1']}, factor: 0.5}, {where: {attribute: kind, in: ['2']}, add: 2}]",
    )
    before = {item.item_id: item.score for item in answered(plain, k=60)}
    after = {item.item_id: item.score for item in answered(pipeline, k=60)}
    assert list(after.values()) == sorted(after.values(), reverse=True)
    for item_id, score in after.items():
        (kind,) = plain.item(item_id)["attributes"].get("kind", [""])
        assert score == pytest.approx({"1": before[item_id] / 2, "2": before[item_id] + 2}.get(kind, before[item_id]))


def test_pins_stand_where_they_may(finished_run, plain, file) -> None:
    text = """
    pins:
    - {item: item 50, position: 1, where: {attribute: kind, in: ["2"]}}
    - {item: item 49, position: 1}
    - {item: item 10, position: 3}
    - {item: item 11, position: 3}
    - {item: nothing, position: 4}
    - {item: item 8, position: 5}
    """
    file.write_text(text)
    few = Pipeline(finished_run, store_of(finished_run), candidates=5, rules=str(file))
    found = answered(few, k=4)
    assert (found[0].item_id, found[2].item_id) == ("item 49", "item 10")
    assert "item 8" not in ids(answered(few, k=60))  # of the history
    assert found[0].recommenders == [] or found[0].score > 0
    assert found[0].probability is not None
    shoes = Condition(attribute="kind", among=("2",))
    assert ids(answered(few, where=shoes))[0] == "item 50"
    assert "item 49" not in ids(answered(few, where=shoes))
    assert "item 49" not in ids(answered(few, exclude=["item 49"]))
    together = few.recommend([Query(history=["item 49"]), Query(history=["item 3", "item 8"], k=4)])
    assert "item 49" not in ids(together[0].items)
    assert ids(together[1].items) == ids(found)


def test_caps_and_objectives(finished_run, plain, file) -> None:
    pipeline = ruled(finished_run, file, "caps: [{attribute: kind, most: 1, of: 5}]")
    found = ids(answered(pipeline, k=15))
    for start in (0, 5, 10):
        kinds = [kind for item in found[start : start + 5] for kind in plain.item(item)["attributes"].get("kind", [])]
        assert len(kinds) == len(set(kinds))
    file.write_text("objectives: {kind: 1, relevance: 0.001}")
    kinds = [plain.item(item)["attributes"].get("kind") for item in ids(answered(pipeline, k=60))]
    numbers = [int(kind[0]) for kind in kinds if kind]
    assert numbers == sorted(numbers, reverse=True)
    file.write_text("objectives: {novelty: 1}")
    likes = plain.cascade.popularity[plain.catalogue.rows(ids(answered(pipeline, k=60)))]
    assert (np.diff(likes) >= 0).all()


def test_what_is_drawn_follows_from_the_request_and_its_propensities_are_kept(finished_run, plain, file) -> None:
    pins = "pins: [{item: item 50, position: 2}]"
    pipeline = ruled(finished_run, file, pins)
    listed = set(ids(pipeline.recommend([Query(history=["item 3"])])[0].items))
    file.write_text(f"exploration: 0.3\n{pins}")
    answers = [pipeline.recommend([Query(history=["item 3"], draw=draw)])[0] for draw in ("a", "a", "b")]
    assert answers[0] == answers[1] != answers[2]
    for answer in answers:
        for place, item in enumerate(answer.items):
            kept = 1.0 if place == 1 else 0.7 if item.item_id in listed else 0.3 / (59 - 10)
            assert item.propensity == pytest.approx(kept)
    logged = as_impression(answers[2], None, "b", "/v1/recommend")
    assert logged.propensities == [item.propensity for item in answers[2].items]
    assert {item.propensity for item in answered(plain)} == {1.0}


def test_new_items_get_their_share(finished_run, file, monkeypatch) -> None:
    monkeypatch.setattr(exposure.time, "time", lambda: 90 * DAY_US / 1e6)
    pipeline = ruled(finished_run, file, "exposure: {target: 0.3, days: 88}")
    seen = exposure.first_seen(finished_run)
    assert (seen == seen.max()).sum() >= 3  # the last three items have no event
    new = set(pipeline.catalogue.ids.take(np.flatnonzero(exposure.seen_within(seen, 88))).to_pylist())
    assert 3 < len(new) < 57
    shares = [
        np.mean([item.item_id in new for item in pipeline.recommend([Query(user_id=f"user {n % 30}")])[0].items])
        for n in range(300)
    ]
    assert np.mean(shares[100:]) == pytest.approx(0.3, abs=0.02)


def test_the_example_of_the_documentation_is_read(plain, file, monkeypatch) -> None:
    (example,) = re.findall(r"```yaml\n(# rules\.yaml\n.*?)```", DOCS.read_text(), re.DOTALL)
    file.write_text(example)
    monkeypatch.setattr(type(plain.catalogue), "names", ["brand", "margin"])
    monkeypatch.setattr(plain.catalogue, "has_numbers", lambda name: True)
    read = rules.read_rules(str(file), plain.catalogue)
    assert set(read.model_fields_set) == set(rules.Rules.model_fields)
