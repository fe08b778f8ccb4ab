"""The features stage over partitions: as many as one likes, killed and resumed, on Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

from operators.columns import matrix_column
from operators.log.collaborative import collaborative_vectors
from operators.log.events import SPLITS
from operators.log.partitions import part_uri
from operators.log.split import SplitLeaveLast, SplitTime
from storage import exchange, files
from storage.errors import UserError
from storage.hashing import hash_ids
from tests.logs import read_examples, read_log_table, write_log
from tests.workflows.stages.test_ranking import EVENTS, write_run
from workflows.engine.registry import stage
from workflows.engine.runner import forget_other_attempts
from workflows.engine.stage import Context
from workflows.stages.features import partitions
from workflows.stages.features import stage as features

CONFIG = features.Config(history=5, long_history=3, negatives=2)
KEYS = ["timestamp", "user_id", "item_id", "label"]
KINDS = {
    "time": SplitTime(),
    "leave_last": SplitLeaveLast(kind="leave_last"),
    "held_back": SplitLeaveLast(kind="leave_last", held_back=2),
}


def tables(context: Context) -> dict[str, pl.DataFrame]:
    """What the stage has written, in an order that does not depend on the partitions."""
    examples = {name: read_examples(context.run, name).sort(KEYS) for name in SPLITS}
    users = pl.DataFrame(context.run.read_table("features", "users")).sort("user_id")
    return {**examples, "users": users, "items": pl.DataFrame(context.run.read_table("features", "items"))}


def written(folder: Path, number: int, *, labels: bool = True, kind: str = "time") -> dict[str, pl.DataFrame]:
    context = replace(write_run(folder, labels=labels, partitions=number), split=KINDS[kind])
    result = stage("features").run(CONFIG, context)
    assert result.rows_out == result.rows_in
    return tables(context)


@pytest.mark.parametrize("kind", KINDS)
def test_labelled_features_are_the_same_for_any_number_of_partitions(tmp_path: Path, kind: str) -> None:
    one, *others = (written(tmp_path / str(number), number, kind=kind) for number in (1, 2, 7))
    held_back = len(one["valid"]) if kind == "held_back" else 0  # one of every user that is asked
    assert sum(len(one[name]) for name in SPLITS) == EVENTS - held_back
    for other in others:
        for name, table in one.items():
            assert_frame_equal(other[name], table, check_exact=True)


def test_tokens_of_semantic_ids_that_training_never_saw_are_unknown(tmp_path: Path) -> None:
    context = write_run(tmp_path, partitions=2)
    log, new = read_log_table(context.run), [f"i{number}" for number in range(4)]
    late = log.slice(log.num_rows * 9 // 10)
    early = log.slice(0, log.num_rows * 9 // 10)
    known = early.filter(pa.compute.invert(pa.compute.is_in(early["item_id"], pa.array(new))))
    write_log(context.run, pa.concat_tables([known, late]), partitions=2)
    sids = pl.DataFrame(context.run.read_table("sids"))
    codes = np.array(sids["codes"].to_list(), np.int32)
    at = [sids["item_id"].to_list().index(item) for item in new]
    codes[at, :2] = [[9, 0], [0, 9], [9, 9], codes[-1, :2]]  # of the last one training knows all
    context.run.write_table(pa.table({"item_id": sids["item_id"], "codes": matrix_column(codes)}), "sids")
    stage("features").run(CONFIG, context)
    items = pl.DataFrame(context.run.read_table("features", "items"))
    order = [sids["item_id"].to_list().index(item) for item in items["item_id"]]
    first, second = codes[order, 0], codes[order, 1]
    trained = items["item"].to_numpy() != 0
    assert set(items.filter(~trained)["item_id"]) == set(new)
    each = [[f"{a}", f"{a}-{b}", f"c2:{b}"] for a, b in zip(first, second, strict=True)]
    seen = {token for tokens, there in zip(each, trained, strict=True) if there for token in tokens}
    hashes = [[hash_ids([token])[0] if token in seen else 0 for token in tokens] for tokens in each]
    assert items["sid"].to_list() == hashes
    unknown = {item: [not value for value in row] for item, row in zip(items["item_id"], hashes, strict=True)}
    of_new = [[True, True, False], [False, True, True], [True, True, True], [False, False, False]]
    assert [unknown[item] for item in new] == of_new


def test_without_labels_only_the_negatives_may_differ(tmp_path: Path) -> None:
    one, *others = (written(tmp_path / str(number), number, labels=False) for number in (1, 2, 7))
    shares = []
    for found in (one, *others):
        for name in ("users", "items"):
            assert_frame_equal(found[name], one[name], check_exact=True)
        for name in SPLITS:
            positives = (table[name].filter(pl.col("label") == 1) for table in (found, one))
            assert_frame_equal(*positives, check_exact=True)
        drawn = found["train"].filter(pl.col("label") == 0)["row"]
        decile = np.argsort(np.argsort(one["items"]["item_events"])) * 10 // one["items"].height
        shares.append(np.bincount(decile[drawn], minlength=10) / len(drawn))
    assert np.abs(np.array(shares) - shares[0]).max() < 0.04  # of 1,800 draws


def test_a_second_history_adds_columns_and_changes_no_other(tmp_path: Path) -> None:
    first, second = (write_run(tmp_path / name) for name in ("without", "with"))
    stage("features").run(CONFIG.model_copy(update={"long_history": 0}), first)
    stage("features").run(CONFIG, second)
    added = ["long_history", "sid_likes_1", "sid_likes_2"]
    for name, table in tables(first).items():
        other = tables(second)[name]
        assert not set(added) & set(table.columns)
        assert set(other.columns) - set(table.columns) == (set(added) if name in SPLITS else set())
        assert_frame_equal(other.select(table.columns), table, check_exact=True)
    plain, spec = (each.run.read_json("features", "spec.json") for each in (first, second))
    assert spec == {**plain, "dense": [*plain["dense"], *added[1:]], "long_history": 3}
    long = tables(second)["test"]
    assert long["long_history"].list.len().max() == 3
    assert long["sid_likes_1"].max() > long["sid_likes_2"].max() > 0


def test_a_killed_stage_goes_on_at_the_piece_that_was_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = written(tmp_path / "undisturbed", 3)
    context = write_run(tmp_path / "killed", partitions=3)
    for name in ("deal_events", "answer_range", "write_part"):
        calls: list[int] = []
        with monkeypatch.context() as patched:
            patched.setattr(partitions, name, dying(getattr(partitions, name), calls))
            with pytest.raises(KeyboardInterrupt):
                stage("features").run(CONFIG, context)
            assert calls == [0, 1]
    stage("features").run(CONFIG, context)
    for name, table in tables(context).items():
        assert_frame_equal(table, undisturbed[name], check_exact=True)


def dying(function: Any, calls: list[int]) -> Any:
    def piece(work: partitions.Work, *arguments: int) -> Any:
        calls.append(arguments[-1])
        if arguments[-1] == 1:
            raise KeyboardInterrupt
        return function(work, *arguments)

    return piece


def test_what_another_attempt_has_left_is_removed(tmp_path: Path) -> None:
    context = write_run(tmp_path, partitions=7)
    stage("features").run(CONFIG, context)
    fewer = replace(write_run(tmp_path, partitions=2), fingerprint="another")
    stage("features").run(CONFIG, fewer)
    assert sum(len(read_examples(context.run, name)) for name in SPLITS) == EVENTS


def run_alone(config: features.Config, context: Context) -> None:
    """Runs the stage as the runner does, which forgets what other attempts left."""
    forget_other_attempts(context, "features")
    stage("features").run(config, context)


def test_an_attempt_that_others_came_between_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = written(tmp_path / "undisturbed", 3)
    context = write_run(tmp_path / "disturbed", partitions=3)
    with monkeypatch.context() as patched:
        patched.setattr(partitions, "write_part", dying(partitions.write_part, []))
        for settings, attempt in ((CONFIG, context), (features.Config(history=1), replace(context, fingerprint="b"))):
            with pytest.raises(KeyboardInterrupt):
                run_alone(settings, attempt)
    run_alone(CONFIG, context)
    for name, table in tables(context).items():
        assert_frame_equal(table, undisturbed[name], check_exact=True)


def test_a_row_that_comes_to_the_wrong_piece_is_not_passed_over(tmp_path: Path, monkeypatch: Any) -> None:
    context = write_run(tmp_path / "range", partitions=2)
    deal = exchange.deal

    def misdealt(uri: str, table: Any, piece: Any = None, pieces: int = 1) -> None:
        deal(uri, table, np.roll(piece, 1) if "/events/" in uri else piece, pieces)

    monkeypatch.setattr(exchange, "deal", misdealt)
    with pytest.raises(RuntimeError, match="range"):
        stage("features").run(CONFIG, context)
    monkeypatch.undo()
    context = write_run(tmp_path / "users", partitions=2)
    files.write_part(part_uri(context.run, "users", 1), files.read_table(part_uri(context.run, "users", 0)))
    with pytest.raises(RuntimeError, match="lacks the ids"):
        stage("features").run(CONFIG, context)


@pytest.mark.usefixtures("ray_cluster")
def test_pieces_run_on_ray(tmp_path: Path) -> None:
    here = written(tmp_path / "here", 3)
    said: list[Any] = []
    context = replace(
        write_run(tmp_path / "there", partitions=3),
        connect=lambda: said.append("connected"),
        progress=lambda done, total: said.append(done / total),
    )
    stage("features").run(CONFIG, context)
    assert said[0] == "connected"
    assert said[-1] == 1.0
    for name, table in tables(context).items():
        assert_frame_equal(table, here[name], check_exact=True)


def test_partitions_without_examples_of_a_split_are_fine(tmp_path: Path) -> None:
    one, many = (written(tmp_path / str(number), number, labels=False) for number in (1, 25))
    for name in SPLITS:
        positives = (table[name].filter(pl.col("label") == 1) for table in (many, one))
        assert_frame_equal(*positives, check_exact=True)


@pytest.mark.parametrize("number", [1, 3])
def test_a_log_without_a_positive_in_training_is_told(tmp_path: Path, number: int) -> None:
    context = write_run(tmp_path)
    log = read_log_table(context.run)  # by time
    label = pa.array((np.arange(EVENTS) >= 0.9 * EVENTS).astype(np.float32))
    write_log(context.run, log.set_column(log.schema.get_field_index("label"), "label", label), partitions=number)
    with pytest.raises(UserError, match=r"No event of the training part of the log is liked: give a longer log or"):
        stage("features").run(CONFIG, context)
    with pytest.raises(UserError, match=r"No event of the training part of the log is liked"):
        collaborative_vectors(context.run, context.split, width=4, seed=0)


def test_an_attempt_does_not_go_on_where_another_one_has_written_since(tmp_path: Path, monkeypatch: Any) -> None:
    undisturbed = written(tmp_path / "undisturbed", 3)
    context = write_run(tmp_path / "killed", partitions=3)
    others = features.Config(history=1, negatives=2)
    with monkeypatch.context() as patched:
        patched.setattr(partitions, "write_part", dying(partitions.write_part, []))
        for config, fingerprint in ((CONFIG, "one"), (others, "other")):
            with pytest.raises(KeyboardInterrupt):
                run_alone(config, replace(context, fingerprint=fingerprint))
    run_alone(CONFIG, replace(context, fingerprint="one"))
    for name, table in tables(context).items():
        assert_frame_equal(table, undisturbed[name], check_exact=True)
