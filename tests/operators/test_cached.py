from __future__ import annotations

import logging
import pickle
import time
import uuid
from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.base import Operator, apply, set_columns, with_outcome
from operators.cached import CachedOperator, _set_up
from operators.gate import CACHED_ONLY, OPEN
from storage.cache import Cache
from storage.errors import UserError
from storage.identity import identity

CALLS: list[list[str]] = []  # texts of every call
SET_UP: list[str] = []


@pytest.fixture(autouse=True)
def _forget():
    """As in a new process."""
    CALLS.clear()
    SET_UP.clear()
    _set_up.cache_clear()
    yield
    fsspec.filesystem("memory").store.clear()


@dataclass(frozen=True)
class Spell(Operator):
    """Words and a vector of a text: raises on "bomb", has half an answer to "ill", none to "mute" and NULL."""

    suffix: str = ""

    input_columns: ClassVar[tuple[str, ...]] = ("text", "pixels", "issues")
    key_columns: ClassVar[tuple[str, ...]] = ("text", "media_digest")

    @property
    def output_schema(self) -> pa.Schema:
        return pa.schema([("caption", pa.string()), ("tags", pa.list_(pa.string())), ("v", pa.list_(pa.float32(), 2))])

    def setup(self) -> None:
        if self.suffix == "broken":
            raise OSError("weights are cut short")
        if self.suffix == "missing":
            raise UserError("There is no such model.")
        SET_UP.append(self.suffix)

    def __call__(self, table: pa.Table) -> pa.Table:
        assert SET_UP, "called before setup"
        texts = table["text"].to_pylist()
        CALLS.append(texts)
        if "bomb" in texts:
            raise ValueError("boom")
        silent = [text in SILENT for text in texts]
        issue = {"severity": "degraded", "code": "model_timeout", "detail": "no answer"}
        issues = [
            [*old, issue] if text == "ill" else old
            for text, old in zip(texts, table["issues"].to_pylist(), strict=True)
        ]
        columns = {
            "caption": [None if no else text + self.suffix for text, no in zip(texts, silent, strict=True)],
            "tags": [None if no else [*text] for text, no in zip(texts, silent, strict=True)],
            "v": [
                None if no or text == "ill" else [float(len(text)), 0.5] for text, no in zip(texts, silent, strict=True)
            ],
        }
        columns_ = {name: pa.array(values, self.output_schema.field(name).type) for name, values in columns.items()}
        return set_columns(table, {**columns_, "issues": pa.array(issues, table.schema.field("issues").type)})


def rows(texts, gates=None, digests=None):
    count = len(texts)
    return with_outcome(
        pa.table(
            {
                "item_id": pa.array([f"item-{number}" for number in range(count)], pa.string()),
                "text": pa.array(texts, pa.string()),
                "pixels": pa.array(range(count), pa.int64()),
                "media_digest": pa.array(digests or [b"d"] * count, pa.binary()),
                "gate": pa.array(gates or [OPEN] * count, pa.string()),
            }
        )
    )


def sources(table):
    return [entry["source"] for entries in table["work"].to_pylist() for entry in entries]


def table_of(drawn):
    texts, gates, digests = (list(column) for column in zip(*drawn, strict=True)) if drawn else ([], [], [])
    return rows(texts, gates, digests)


def called():
    """Texts that the operator was called on, in all calls."""
    return [text for call in CALLS for text in call]


LASTING = ("", "a", "b", "ab", "red coat")
SILENT = ("mute", None)
PASSING = ("ill", *SILENT)
GATES = st.sampled_from([OPEN, OPEN, CACHED_ONLY, "no_media", None])
DIGESTS = st.sampled_from([b"1", b"2", None])
BEFORE = st.lists(st.tuples(st.sampled_from(LASTING), st.just(OPEN), DIGESTS), max_size=8)
RESULTS = ["caption", "tags", "v", "outcome", "issues"]


@given(
    st.lists(st.tuples(st.sampled_from([*LASTING, *PASSING, "bomb"]), GATES, DIGESTS), max_size=20),
    BEFORE,
    st.booleans(),
)
def test_answers_are_the_operators_own_where_the_gate_lets_through(drawn, before, cached):
    cache = f"memory://{uuid.uuid4().hex}" if cached else None
    invocation = CachedOperator(Spell(), "spell", cache=cache, gate="gate")
    apply(invocation, table_of(before))
    table = table_of(drawn)
    out = apply(invocation, table)

    known = {(text, digest) for text, gate, digest in [*(before if cached else []), *drawn] if gate == OPEN and digest}
    alone = {row["item_id"]: row for row in apply(Spell(), table).to_pylist()}
    refused = {"caption": None, "tags": None, "v": None, "outcome": "kept", "issues": []}
    assert out["item_id"].to_pylist() == table["item_id"].to_pylist()
    for row, (text, gate, digest), source in zip(out.to_pylist(), drawn, sources(out), strict=True):
        served = gate == OPEN or (gate == CACHED_ONLY and (text, digest) in known)
        wanted = alone[row["item_id"]] if served else refused
        issues = [{**issue, "severity": "degraded"} for issue in wanted["issues"]]
        wanted = {**wanted, "outcome": "kept", "issues": issues}  # a row without this part is no row less
        assert {name: row[name] for name in RESULTS} == {name: wanted[name] for name in RESULTS}
        assert (source == "refused") == (not served)


@given(st.lists(st.tuples(st.sampled_from([*LASTING, *PASSING]), GATES, DIGESTS), max_size=20), BEFORE)
def test_the_operator_is_called_on_what_is_open_and_new(drawn, before):
    invocation = CachedOperator(Spell(), "spell", cache=f"memory://{uuid.uuid4().hex}", gate="gate")
    apply(invocation, table_of(before))
    known = {(text, digest) for text, _, digest in before}
    keyless = [text for text, gate, digest in drawn if gate == OPEN and digest is None]
    new = {(text, digest) for text, gate, digest in drawn if gate == OPEN and digest} - known

    CALLS.clear()
    first = apply(invocation, table_of(drawn))
    assert Counter(called()) == Counter([*keyless, *(text for text, _ in new)])
    told = sources(first)
    assert told.count("computed") == sum(text not in SILENT for text in called())
    served = [text for text, gate, digest in drawn if gate == OPEN or (gate == CACHED_ONLY and (text, digest) in new)]
    assert told.count("empty") == sum(text in SILENT for text in served)

    CALLS.clear()
    second = apply(invocation, table_of(drawn))
    assert Counter(called()) == Counter([*keyless, *(text for text, _ in new if text in PASSING)])
    assert second.select(RESULTS).equals(first.select(RESULTS))


def test_a_cache_that_holds_everything_loads_no_model(tmp_path):
    invocation = CachedOperator(Spell("!"), "spell", cache=str(tmp_path))
    first = apply(invocation, rows(["a", "b"]))
    SET_UP.clear()
    CachedOperator.setup(invocation)
    second = apply(invocation, rows(["b", "a", "b"]))
    assert not SET_UP
    assert second["caption"].to_pylist() == ["b!", "a!", "b!"]
    assert (sources(first), sources(second)) == (["computed"] * 2, ["cached"] * 3)


def test_only_the_gates_word_calls_the_model(tmp_path):
    invocation = CachedOperator(Spell(), "spell", cache=str(tmp_path), gate="gate")
    out = apply(invocation, rows(["a", "b", "c"], [CACHED_ONLY, "no_media", None]))
    assert not CALLS
    assert out["caption"].to_pylist() == [None] * 3
    assert out["issues"].to_pylist() == [[]] * 3


def test_what_failed_is_tried_again_and_what_worked_is_not(tmp_path):
    invocation = CachedOperator(Spell(), "spell", cache=str(tmp_path))
    table = rows(["a", "ill", "bomb", "mute", "b"])
    apply(invocation, table)
    CALLS.clear()
    apply(invocation, table)
    assert set(called()) == {"ill", "bomb", "mute"}


def test_a_row_that_raises_is_degraded_alone_and_keeps_its_place(tmp_path):
    invocation = CachedOperator(Spell(), "spell", cache=str(tmp_path))
    out = apply(invocation, rows(["a", "bomb", "b", "bomb", "c"]))
    assert out["outcome"].to_pylist() == ["kept"] * 5
    assert out["caption"].to_pylist() == ["a", None, "b", None, "c"]
    failure = {"severity": "degraded", "code": "operator_error", "detail": "Spell: ValueError: boom"}
    assert out["issues"].to_pylist() == [[], [failure], [], [failure], []]


def test_rows_that_share_a_failure_keep_their_own_issues():
    table = rows(["ill", "ill", "a"])
    old = {"severity": "degraded", "code": "missing", "detail": "there is no such file"}
    table = set_columns(table, {"issues": pa.array([[], [old], [old]], table.schema.field("issues").type)})
    out = apply(CachedOperator(Spell(), "spell"), table)
    assert [[issue["code"] for issue in issues] for issues in out["issues"].to_pylist()] == [
        ["model_timeout"],
        ["missing", "model_timeout"],
        ["missing"],
    ]
    assert CALLS == [["ill", "a"]]


def test_other_settings_and_other_versions_have_other_results(tmp_path):
    newer = type("Spell", (Spell,), {"version": 2})
    for operator in (Spell(), Spell("!"), newer()):
        apply(CachedOperator(operator, "spell", cache=str(tmp_path)), rows(["a"]))
    assert len(CALLS) == 3
    assert len(list(tmp_path.iterdir())) == 3  # a folder each, so that what is old can be deleted


@dataclass(frozen=True)
class Join(Operator):
    """Two texts and a list as one text."""

    input_columns: ClassVar[tuple[str, ...]] = ("x", "y", "z")
    key_columns: ClassVar[tuple[str, ...]] = ("x", "y", "z")

    @property
    def output_schema(self) -> pa.Schema:
        return pa.schema([("joined", pa.string())])

    def __call__(self, table: pa.Table) -> pa.Table:
        joined = [repr(row) for row in zip(*(table[name].to_pylist() for name in "xyz"), strict=True)]
        return set_columns(table, {"joined": pa.array(joined, pa.string())})


PART = st.none() | st.text(st.sampled_from('ab\x00\xff",[] '), max_size=3)


@given(st.lists(st.tuples(PART, PART, st.none() | st.lists(PART, max_size=2)), max_size=30))
def test_no_two_contents_share_a_key(drawn):
    columns = (
        dict(zip("xyz", map(list, zip(*drawn, strict=True)), strict=True)) if drawn else {"x": [], "y": [], "z": []}
    )
    types = {"x": pa.string(), "y": pa.large_string(), "z": pa.list_(pa.string())}
    table = with_outcome(pa.table({name: pa.array(values, types[name]) for name, values in columns.items()}))
    out = apply(CachedOperator(Join(), "join"), table)
    assert out["joined"].to_pylist() == [repr(row) for row in drawn]
    assert sources(out).count("computed") == len({repr(row) for row in drawn})


def test_a_foreign_value_under_the_right_key_is_computed_anew(tmp_path):
    invocation = CachedOperator(Spell(), "spell", cache=str(tmp_path))
    apply(invocation, rows(["a", "b"]))
    (folder,) = (path.name for path in tmp_path.iterdir())
    keys = [bytes.fromhex(path.name) for path in tmp_path.glob("*/*/*")]
    Cache(str(tmp_path)).put_many(folder, dict(zip(keys, [b"not a row", b""], strict=True)))
    out = apply(invocation, rows(["a", "b"]))
    assert (out["caption"].to_pylist(), sources(out)) == (["a", "b"], ["computed"] * 2)


def test_a_cache_that_fails_stops_nothing(tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    invocation = CachedOperator(Spell(), "spell", cache=str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        out = apply(invocation, rows(["a", "b"]))
    assert (out["caption"].to_pylist(), sources(out)) == (["a", "b"], ["computed"] * 2)
    assert any("cannot be written" in line for line in caplog.messages)


@pytest.mark.parametrize(("suffix", "message"), [("missing", "There is no such model"), ("broken", "cut short")])
def test_a_set_up_that_fails_ends_the_run_and_rejects_no_row(suffix, message):
    with pytest.raises(UserError, match=message):
        apply(CachedOperator(Spell(suffix), "spell"), rows(["a", "b"]))


def test_work_is_told_apart_by_operator_and_adds_up():
    class Slow(Spell):
        def __call__(self, table: pa.Table) -> pa.Table:
            time.sleep(0.05)
            return super().__call__(table)

    table = apply(CachedOperator(Spell(), "first", gate="gate"), rows(["a", "b", "a"], [OPEN, "no_media", OPEN]))
    out = apply(CachedOperator(Slow("~"), "second"), table)
    told = [[(entry["operator"], entry["source"]) for entry in entries] for entries in out["work"].to_pylist()]
    assert told == [
        [("first", "computed"), ("second", "computed")],
        [("first", "refused"), ("second", "computed")],
        [("first", "cached"), ("second", "cached")],
    ]
    seconds = np.array([entries[1]["seconds"] for entries in out["work"].to_pylist()])
    assert 0.05 <= seconds.sum() < 5
    assert seconds[2] == 0


def test_rows_rejected_on_the_way_pass_beside_the_work_of_others():
    first = apply(CachedOperator(Spell(), "first"), rows(["a", "b"]))
    first = set_columns(first, {"outcome": pa.array(["kept", "rejected"])})
    out = apply(CachedOperator(Spell("~"), "second"), first)
    told = zip(out["outcome"].to_pylist(), map(len, out["work"].to_pylist()), strict=True)
    assert sorted(told) == [("kept", 2), ("rejected", 1)]


def test_rows_of_equal_content_share_what_there_was_to_say():
    out = apply(CachedOperator(Spell(), "spell"), rows(["a", "a", "mute", "mute", "bomb", "bomb"]))
    assert sources(out) == ["computed", "cached", "empty", "empty", "computed", "computed"]


def test_a_row_on_which_the_operator_has_nothing_to_work_is_not_counted_as_computed():
    out = apply(CachedOperator(Spell(), "spell"), rows(["a", None]))
    assert sources(out) == ["computed", "empty"]


def test_it_travels_to_other_processes_and_is_known_by_what_it_computes():
    invocation = CachedOperator(Spell("x"), "spell", cache="memory://c", gate="gate")
    apply(invocation, rows(["a"]))
    assert pickle.loads(pickle.dumps(invocation)) == invocation  # noqa: S301 - our own bytes
    assert identity(invocation) == identity(replace(invocation, cache=None))
    assert identity(invocation) != identity(replace(invocation, operator=Spell("y")))
