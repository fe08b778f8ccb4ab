from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmarks import same_run
from storage.manifest import Manifest, StageEntry, write_manifest
from storage.run import RunDir

ITEMS = ("lamp", "chair", "table")


def make_run(root: Path, *, older: bool = False, order: tuple[int, ...] = (0, 1, 2)) -> RunDir:
    """A small finished run under the names of either version; rows in any order."""
    run, older_names = RunDir(str(root)), ("parallel", "sequential", "itemknn")
    codes, language, content = older_names if older else ("product_codes", "language_model", "content")
    ids = pa.array([ITEMS[row] for row in order])

    def vectors(values: list[list[float]]) -> pa.Array:
        return pa.array([values[row] for row in order], pa.list_(pa.float32(), 2))

    run.write_table(
        pa.table(
            {
                "item_id": ids,
                "caption": [("A lamp.", None, "A table.")[row] for row in order],
                "interests": pa.array([(["oak"], [], ["ash", "oak"])[row] for row in order], pa.list_(pa.string())),
                "image_vector": vectors([[0.1, 0.2], [1.0, 2.0], [3.0, 4.0]]),
                "text_vector": vectors([[0.5, 0.5], [0.25, 0.0], [0.0, 1.0]]),
            }
        ),
        "items",
    )
    run.write_table(
        pa.table({"item_id": ids, "embedding": vectors([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])}), "embeddings"
    )
    sids = pa.array([([1, 2, -1], [1, 3, 0], [1, 3, 1])[row] for row in order], pa.list_(pa.int32(), 3))
    run.write_table(pa.table({"item_id": ids, "codes": sids}), "sids")

    recommenders = {
        "generator": {"ndcg@10": 0.2},
        codes: {"ndcg@10": 0.2},
        content: {"ndcg@10": 0.1},
        f"generator_over_{content}": {"ndcg@10": 2.0},
    }
    scores: dict[str, Any] = {"ranker": {"auc": 0.7}, "popularity": {"auc": 0.61, "queries": 9}}
    scores |= recommenders if older else {"recommenders": recommenders}
    curve = [
        {"step": 100, "train_loss": 3.5, "seconds": 1.0 + older},
        {"step": 200, "train_loss": 3.25, "seconds": 2.0},
    ]
    generated = {"chosen": codes, "history": {codes: curve, language: curve}}
    variants = {
        "compared": {"More tasks": {"ndcg@10": 0.01}},
        ("arms" if older else "variants"): {"own-1": {"step": [9]}},
    }
    ablated = {"ablate_tasks": variants, "ablate_features": {"gate_curve": {"1": 0.5}}}
    if older:
        ablated = {"ablation": variants, "evidence": ablated["ablate_features"]}
    files = {"rank": [{"epoch": 1, "valid_auc": 0.68}], "generate": generated, "evaluate": scores, **ablated}
    for name, value in files.items():
        run.write_json(value, "metrics", f"{name}.json")
    write_manifest(
        run.root,
        Manifest(
            name="small",
            stages={
                name: StageEntry(
                    state="complete",
                    fingerprint=f"{older}",
                    rows_out=3,
                    seconds=1.0 + older,
                    metrics={"value": metrics},
                )
                for name, metrics in files.items()
            },
        ),
    )
    settings = {"collisions": "digit", "max_digits": 8} if older else {"collisions": "suffix", "max_suffixes": 8}
    run.write_json({"name": "small", "catalog": str(root), "stages": {"quantize": settings}}, "workflow.yaml")
    return run


def change(run: RunDir, name: str, keys: tuple[str | int, ...], value: Any) -> None:
    """Set one number of a file of metrics."""
    content = run.read_json("metrics", f"{name}.json")
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    run.write_json(content, "metrics", f"{name}.json")


def different(a: RunDir, b: RunDir) -> dict[str, list[str]]:
    found = same_run.compare(a.root, b.root)
    parts = {name: part["examples"] for name, part in found["parts"].items() if part["different"]}
    assert found["same"] == (not parts)
    return parts


@pytest.fixture
def runs(tmp_path) -> tuple[RunDir, RunDir]:
    return make_run(tmp_path / "older", older=True), make_run(tmp_path / "newer", order=(2, 0, 1))


def test_an_older_and_a_newer_run_of_the_same_results_are_the_same(runs) -> None:
    found = same_run.compare(runs[0].root, runs[1].root)
    assert found["same"]
    assert found["settings"] == []
    assert found["parts"]["sids.codes"]["compared"] == 3
    for part in ("items.caption", "items.interests", "embeddings.embedding", "metrics.manifest", "metrics.evaluate"):
        assert found["parts"][part]["compared"] > 0, part
    for part in ("metrics.ablate_features", "metrics.ablate_tasks", "metrics.generate", "metrics.rank"):
        assert found["parts"][part]["compared"] > 0, part


def test_every_code_caption_and_interest_has_to_be_identical(runs) -> None:
    a, b = runs
    items = b.read_table("items")
    captions = ["A desk." if item == "table" else text for item, text in zip(*_columns(items, "caption"), strict=True)]
    interests = [
        [*words, "pine"] if item == "lamp" else words for item, words in zip(*_columns(items, "interests"), strict=True)
    ]
    items = items.set_column(1, "caption", [captions]).set_column(2, "interests", [interests])
    b.write_table(items, "items")
    codes = [
        [1, 3, 2] if item == "chair" else code
        for item, code in zip(*_columns(b.read_table("sids"), "codes"), strict=True)
    ]
    b.write_table(b.read_table("sids").set_column(1, "codes", [pa.array(codes, pa.list_(pa.int32(), 3))]), "sids")
    assert different(a, b) == {
        "sids.codes": ["item chair: [1, 3, 0] in run A, [1, 3, 2] in run B"],
        "items.caption": ["item table: A table. in run A, A desk. in run B"],
        "items.interests": ["item lamp: ['oak'] in run A, ['oak', 'pine'] in run B"],
    }


def _columns(table: pa.Table, name: str) -> tuple[list[str], list[Any]]:
    return table["item_id"].to_pylist(), table[name].to_pylist()


@pytest.mark.parametrize(("step", "same"), [(5e-7, True), (1e-3, False)])
def test_vectors_are_compared_within_the_tolerance(runs, step: float, same: bool) -> None:
    a, b = runs
    table = b.read_table("embeddings")
    moved = [
        [value + step if item == "chair" else value for value in vector]
        for item, vector in zip(*_columns(table, "embedding"), strict=True)
    ]
    b.write_table(table.set_column(1, "embedding", [pa.array(moved, pa.list_(pa.float32(), 2))]), "embeddings")
    assert ("embeddings.embedding" in different(a, b)) is not same
    part = same_run.compare(a.root, b.root)["parts"]["embeddings.embedding"]
    assert part["max_abs_diff"] == pytest.approx(step, rel=0.2)


def test_an_item_that_one_run_lacks_is_a_difference(runs) -> None:
    a, b = runs
    b.write_table(b.read_table("sids").filter(pa.array([True, True, False])), "sids")
    assert different(a, b) == {"sids.codes": ["item chair: only in run A"]}


@pytest.mark.parametrize(
    ("name", "keys", "value", "line"),
    [
        ("rank", (0, "valid_auc"), 0.6801, "rank.0.valid_auc: 0.68 in run A, 0.6801 in run B"),
        ("evaluate", ("ranker", "auc"), 0.70001, "evaluate.ranker.auc: 0.7 in run A, 0.70001 in run B"),
        (
            "evaluate",
            ("recommenders", "content", "ndcg@10"),
            0.11,
            "evaluate.content.ndcg@10: 0.1 in run A, 0.11 in run B",
        ),
        (
            "generate",
            ("history", "language_model", 1, "train_loss"),
            3.26,
            "generate.history.language_model.1.train_loss: 3.25 in run A, 3.26 in run B",
        ),
        ("generate", ("chosen",), "language_model", "generate.chosen: product_codes in run A, language_model in run B"),
        ("evaluate", ("popularity", "queries"), 10, "evaluate.popularity.queries: 9 in run A, 10 in run B"),
        ("evaluate", ("ranker", "more"), 1.0, "evaluate.ranker.more: only in run B (1.0)"),
        ("evaluate", ("ranker", "auc"), None, "evaluate.ranker.auc: 0.7 in run A, None in run B"),
    ],
)
def test_a_metric_that_differs_is_named(runs, name: str, keys, value: Any, line: str) -> None:
    change(runs[1], name, keys, value)
    assert different(*runs) == {f"metrics.{name}": [line]}


def test_numbers_may_differ_by_rounding_and_popularity_by_more(runs) -> None:
    a, b = runs
    change(b, "evaluate", ("ranker", "auc"), 0.7 * (1 + 9e-7))
    change(b, "evaluate", ("popularity", "auc"), 0.61 + 9e-5)
    assert different(a, b) == {}
    change(b, "evaluate", ("popularity", "auc"), 0.61 + 2e-4)
    assert list(different(a, b)) == ["metrics.evaluate"]


def test_differing_settings_are_listed_and_are_no_difference(runs) -> None:
    a, b = runs
    b.write_json(
        {"name": "small", "stages": {"quantize": {"collisions": "sinkhorn", "max_suffixes": 8}}}, "workflow.yaml"
    )
    found = same_run.compare(a.root, b.root)
    assert found["same"]
    assert found["settings"] == ["stages.quantize.collisions: suffix in run A, sinkhorn in run B"]


def test_the_command_prints_one_object_and_lines_and_says_so_by_its_status(runs, monkeypatch, capsys) -> None:
    a, b = runs

    def status(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["same_run", *arguments])
        with pytest.raises(SystemExit) as ended:
            same_run.main()
        return int(ended.value.code or 0)

    assert status(a.root, b.root) == 0
    found, end = json.JSONDecoder().raw_decode(text := capsys.readouterr().out)
    assert found["same"]
    assert "sids.codes: same" in text[end:].splitlines()
    change(b, "evaluate", ("ranker", "auc"), 0.8)
    assert status(a.root, b.root) == 1
    assert "  evaluate.ranker.auc: 0.7 in run A, 0.8 in run B" in capsys.readouterr().out.splitlines()
    write_manifest(b.root, Manifest(name="small", stages={"rank": StageEntry(state="running")}))
    assert status(a.root, b.root) == 2
    assert "finish the run" in capsys.readouterr().err
    assert status(a.root, str(Path(b.root) / "nowhere")) == 2


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(same_run).failed == 0
