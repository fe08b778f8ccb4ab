"""The task ablation on a small run: what its arms are, fits that are killed and shared out, and what they show."""

from __future__ import annotations

import doctest
import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist

from models.common.jagged import Jagged
from models.common.recommender import Queries
from models.semantic_ids.quantizer import RQKMEANS, Architecture
from models.semantic_ids.rqkmeans import fit_rqkmeans
from models.semantic_ids.training_rows import collect
from operators.columns import matrix_column, matrix_of
from operators.log.split import SplitTime
from storage import files
from storage.errors import UserError
from storage.run import RunDir
from tests.models.workers import on_ranks
from workflows.distributed import training
from workflows.engine import definition
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.stages.ablate_tasks import original_sids, scores, variants
from workflows.stages.ablate_tasks.stage import Config
from workflows.stages.ablate_tasks.variants import ORIGINAL, OWN, Arm

ITEMS, USERS, EVENTS, WIDTH, SIZES = 40, 30, 600, 4, (6, 6)
SEQUENTIAL = {
    "backbone": {"name": "tiny", "layers": 1, "dim": 16, "heads": 2, "mlp": 16, "dropout": 0.0},
    "tasks": ["sids_to_sid", "title_to_sid"],
    "text_tokens": 300,
    "held_out": 0.25,
    "history": 3,
    "beams": 20,
    "fit": {"steps": 4, "batch_size": 8, "warmup": 1, "validate_every": 2, "valid_queries": 10, "precision": "fp32"},
}
CONFIG = Config(sequential=SEQUENTIAL, seeds=2, queries=20, examples=4, bootstrap=20)


class KilledError(Exception):
    """Stands for the end of a process."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run up to quantize."""
    random = np.random.default_rng(0)
    run = RunDir(str(tmp_path_factory.mktemp("ablate_tasks") / "run"))
    ids = [f"item {n}" for n in range(ITEMS)]
    pictured = random.normal(size=(2, ITEMS, WIDTH)).astype(np.float32)
    titles = pa.array([None if n % 9 == 0 else f"film {n}" for n in range(ITEMS)], pa.string())
    texts = matrix_column(pictured[0], np.arange(ITEMS) % 9 != 0)
    captions = pa.nulls(ITEMS, pa.string())
    run.write_table(pa.table({"item_id": ids, "title": titles, "caption": captions, "text_vector": texts}), "items")
    embeddings = matrix_column(pictured[1], np.ones(ITEMS, bool))
    run.write_table(pa.table({"item_id": ids, "embedding": embeddings}), "embeddings")
    vectors = collect([(pictured[1], np.empty((ITEMS, 0), np.float32))], seed=0)
    quantizer = fit_rqkmeans(vectors, Architecture(RQKMEANS, WIDTH, SIZES, WIDTH), seed=0)
    quantizer.save(run.uri("models", "quantizer"))
    codes = quantizer.encode(torch.from_numpy(pictured[1])).numpy()
    run.write_table(pa.table({"item_id": ids, "codes": matrix_column(np.column_stack([codes, range(ITEMS)]))}), "sids")
    log = {
        "user_id": [f"user {n}" for n in random.integers(0, USERS, EVENTS)],
        "item_id": [ids[n] for n in random.integers(0, ITEMS, EVENTS)],
        "timestamp": pa.array(np.arange(EVENTS) * 10**6, pa.timestamp("us", tz="UTC")),
    }
    run.write_table(pa.table(log), "catalog", "interactions")
    return run


def write_original(run: RunDir, to: RunDir) -> bool:
    """Semantic IDs unlike the run's own in the place of the original ones."""
    items, sids = run.read_table("items"), run.read_table("sids")
    to.write_table(items, "items")
    turned = matrix_of(sids["codes"])[::-1]
    to.write_table(pa.table({"item_id": sids["item_id"], "codes": matrix_column(turned)}), "sids")
    to.write_json({"codebook_sizes": list(SIZES)}, "models", "quantizer", "config.json")
    return True


def make_task(run: RunDir, folder: Path, config: Config = CONFIG) -> dict[str, Any]:
    """What `fit_arms` is told, with the original semantic IDs in their place."""
    write_original(run, variants.original_of(str(folder)))
    jobs = [(arm.name, seed) for seed in (0, 1) for arm in variants.make_arms(config.sequential)]
    return {
        "root": run.root,
        "split": {"kind": "time"},
        "settings": config.model_dump(mode="json"),
        "folder": str(folder),
        "jobs": jobs,
        "seed": 0,
    }


def scores_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: files.read_json(str(path)) for path in folder.glob("*.json")}


@pytest.fixture(scope="module")
def fitted(run: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scores of all arms, fitted without disturbance."""
    folder = tmp_path_factory.mktemp("undisturbed")
    variants.fit_arms(make_task(run, folder), lambda metrics: None)
    return folder


def test_tasks_are_added_one_by_one_and_text_alone_has_those_without_captions() -> None:
    arms = variants.make_arms(Config().sequential)
    assert arms == (*(Arm(OWN, count) for count in range(1, 9)), Arm(ORIGINAL, 6))
    learned = [variants.arm_settings(Config(), arm).learned for arm in arms]
    assert all(more[: len(fewer)] == fewer for fewer, more in itertools.pairwise(learned[:8]))
    assert learned[8] == learned[5]
    assert not any("caption" in task.inputs for task in learned[8])


@pytest.mark.parametrize(("budget", "documents"), [("steps", [8, 8]), ("main", [8, 16])])
def test_arms_share_their_steps_and_either_all_documents_or_those_of_the_main_task(budget, documents) -> None:
    config = CONFIG.model_copy(update={"budget": budget})
    fits = [variants.arm_settings(config, Arm(OWN, count)).fit for count in (1, 2)]
    assert [fit.batch_size for fit in fits] == documents
    assert {fit.steps for fit in fits} == {4}


def test_a_killed_ablation_fits_no_arm_twice_and_ends_alike(run: RunDir, fitted: Path, tmp_path: Path) -> None:
    task, done = make_task(run, tmp_path), []

    def killed(metrics: dict[str, Any]) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        variants.fit_arms(task, killed)
    (first,) = tmp_path.glob("*.json")
    written = first.stat().st_mtime_ns
    variants.fit_arms(task, lambda metrics: done.append(metrics["done"]))
    assert done == [1, 2, 3, 4, 5, 6]
    assert first.stat().st_mtime_ns == written
    found, whole = scores_of(tmp_path), scores_of(fitted)
    assert len(whole) == 6
    timeless = [{name: {**one, "seconds": 0} for name, one in each.items()} for each in (found, whole)]
    assert timeless[0] == timeless[1]


def share(rank: int, task: dict[str, Any]) -> list[int]:
    """The loop of one of two workers, which the process group of the tests outlives."""
    done: list[int] = []
    training.report = lambda metrics: done.append(metrics["done"])
    variants.loop(task)
    assert not dist.is_initialized()
    dist.init_process_group("gloo", init_method=f"file://{task['folder']}/again", rank=rank, world_size=2)
    return done


def test_two_workers_share_the_arms_and_fit_each_by_itself(run: RunDir, fitted: Path, tmp_path: Path) -> None:
    task = make_task(run, tmp_path)
    task["jobs"] = task["jobs"][:3]  # an odd number
    assert on_ranks(share, tmp_path, [(task,)]) == [[[2, 3]] * 2]
    found, alone = scores_of(tmp_path), scores_of(fitted)
    assert len(found) == 3
    for name, one in found.items():
        loss = one["tasks"]["sids_to_sid"]["loss"]
        assert loss == pytest.approx(alone[name]["tasks"]["sids_to_sid"]["loss"], abs=1e-3)


def test_what_arms_learned_from_is_what_they_are_asked(fitted: Path) -> None:
    scores = scores_of(fitted)
    assert scores["own-1-0.json"]["tasks"].keys() == {"sids_to_sid"}
    assert scores["own-2-0.json"]["tasks"].keys() == {"sids_to_sid", "title_to_sid"}
    assert {len(one["rank"]) for one in scores.values()} == {20}
    assert scores["own-2-0.json"]["tasks"] != scores["original-2-0.json"]["tasks"]


def test_means_over_seeds_stand_with_intervals_and_changes(run: RunDir, fitted: Path) -> None:
    test = variants.read_queries(CONFIG, run, SplitTime(), seed=0).test
    arms = variants.make_arms(CONFIG.sequential)
    found = scores.judge(str(fitted), CONFIG, arms, (0, 1), test, seed=0)
    assert list(found["arms"]) == ["own-1", "own-2", "original-2"]
    scored, one = scores_of(fitted), found["arms"]["own-2"]
    hits = [np.mean([0 < rank <= 10 for rank in scored[f"own-2-{seed}.json"]["rank"]]) for seed in (0, 1)]
    assert one["seeds"]["recall@10"] == pytest.approx(hits)
    assert one["recall@10"] == pytest.approx(np.mean(hits))
    assert one["recall@10_interval"][0] <= one["recall@10"] <= one["recall@10_interval"][1]
    assert one["added"]["ndcg@10"] == pytest.approx(one["ndcg@10"] - found["arms"]["own-1"]["ndcg@10"])
    assert "added" not in found["arms"]["own-1"].keys() | found["arms"]["original-2"].keys()
    losses = [scored[f"own-2-{seed}.json"]["tasks"]["title_to_sid"]["loss"] for seed in (0, 1)]
    assert one["held_out"]["title_to_sid"]["loss"] == pytest.approx(np.mean(losses))
    assert len(found["compared"]) == 2  # without captions there are no more pairs
    assert len(found["sentences"]) == 3


def test_the_stage_fits_what_is_left_and_writes_what_it_found(run: RunDir, fitted: Path, monkeypatch) -> None:
    scores = run.uri("checkpoints", "ablate_tasks", "print", "scores")
    shutil.copytree(fitted, scores, ignore=shutil.ignore_patterns("own-2-1.json", "original"))
    shown: list[tuple[int, int]] = []

    def fit(loop: Any, task: dict[str, Any], *, progress: Any, name: str, **_: Any) -> None:
        assert (loop, name) == (variants.loop, "ablate_tasks/print")
        variants.fit_arms(task, progress)

    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(original_sids, "write_original", lambda context, to: write_original(context.run, to))
    said: list[str] = []
    context = Context(run, "c", 0, "print", said.append, lambda done, total: shown.append((done, total)))
    result = stage("ablate_tasks").run(CONFIG, context)
    assert (result.rows_in, result.rows_out, shown[-1]) == (6, 6, (6, 6))
    written = run.read_json("metrics", "ablate_tasks.json")
    assert written["arms"].keys() == result.metrics["arms"].keys() == {"own-1", "own-2", "original-2"}
    assert said == written["sentences"]
    alone = scores.judge(
        str(fitted),
        CONFIG,
        variants.make_arms(CONFIG.sequential),
        (0, 1),
        variants.read_queries(CONFIG, run, SplitTime(), seed=0).test,
        seed=0,
    )
    for name, arm in written["arms"].items():
        assert arm["ndcg@10_interval"] == alone["arms"][name]["ndcg@10_interval"]


def write_ranks(folder: Path, arms: dict[str, list[np.ndarray]]) -> None:
    for name, by_seed in arms.items():
        for seed, rank in enumerate(by_seed):
            one = {"rank": rank.tolist(), "step": 1, "seconds": 1.0, "tasks": {"sids_to_sid": {"examples": 0}}}
            files.write_json(variants.scores_uri(str(folder), name, seed), one)


def judged(folder: Path, users: int) -> dict[str, Any]:
    nothing = Jagged(torch.zeros(0, dtype=torch.int64), torch.zeros(users + 1, dtype=torch.int64))
    test = Queries(np.arange(users), nothing, torch.zeros(users, dtype=torch.int64), nothing)
    return scores.judge(str(folder), Config(), variants.make_arms(Config().sequential), range(3), test, seed=0)


def test_what_is_there_is_found_and_what_is_not_is_not_claimed(tmp_path: Path) -> None:
    """Of 400 users 30% are answered; the third task makes it 60%, the sixth 45%, and the others change nothing."""
    random, users = np.random.default_rng(0), 400
    few, many, some, text = (
        [(random.random(users) < share).astype(int) for _ in range(3)] for share in (0.3, 0.6, 0.45, 0.3)
    )
    own = [few, few, many, many, many, some, some, some]
    write_ranks(tmp_path, {f"own-{count + 1}": ranks for count, ranks in enumerate(own)} | {"original-6": text})
    found = judged(tmp_path, users)
    by_what = {sentence.partition(":")[0]: sentence for sentence in found["sentences"]}
    assert len(found["compared"]) == 4
    assert "rises by 0.1" in by_what["8 tasks in place of the main one alone"]
    assert "rises by 0.1" in by_what["The run's semantic IDs in place of those of text alone, with 6 tasks"]
    assert "is not shown to change" in by_what["8 tasks, of which 2 read captions, in place of 6"]
    last = found["sentences"][-1]
    assert last.startswith(
        "Of 7 tasks added one by one to the main one: titles_to_title raises it; sid_to_title lowers"
    )
    assert "misses by chance" in last


def test_seeds_that_disagree_widen_the_interval(tmp_path: Path) -> None:
    users, widths = 300, []
    for name, shares in (("alike", (0.5, 0.5, 0.5)), ("apart", (0.2, 0.5, 0.8))):
        ranks = [(np.random.default_rng(9).random(users) < share).astype(int) for share in shares]
        names = [arm.name for arm in variants.make_arms(Config().sequential)]
        write_ranks(tmp_path / name, dict.fromkeys(names, ranks))
        low, high = judged(tmp_path / name, users)["arms"]["own-1"]["ndcg@10_interval"]
        widths.append(high - low)
    assert widths[1] > 3 * widths[0]


def test_too_few_users_have_no_intervals(tmp_path: Path) -> None:
    names = [arm.name for arm in variants.make_arms(Config().sequential)]
    write_ranks(tmp_path, dict.fromkeys(names, [np.ones(5, int)] * 3))
    found = judged(tmp_path, 5)
    assert np.isnan(found["arms"]["own-1"]["ndcg@10_interval"]).all()
    assert all("too few users" in sentence for sentence in found["sentences"][:-1])
    assert found["sentences"][-1].endswith("none is shown to change it.")


def test_a_task_that_nothing_is_learned_from_is_found_before_any_fit(run: RunDir) -> None:
    sequential = {**SEQUENTIAL, "tasks": ["sids_to_sid", "caption_to_sid"]}
    config = Config(sequential=sequential)
    with pytest.raises(UserError, match="nothing to learn task caption_to_sid from"):
        stage("ablate_tasks").run(config, Context(run, "c", 0, "print", lambda line: None, lambda done, total: None))


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        (["sids_to_sid"], "name two or more under tasks"),
        (["title_to_sid", "sids_to_sid"], "name sids_to_sid first"),
        (["sids_to_sid", "caption_to_sid", "title_to_sid"], "name those that read captions last"),
        (["sids_to_sid", "title_to_sit"], "did you mean title_to_sid"),
    ],
)
def test_tasks_can_be_added_in_the_order_in_which_they_are_named(tasks: list[str], says: str) -> None:
    stages = dict.fromkeys(stage("ablate_tasks").reads) | {"ablate_tasks": {"sequential": {"tasks": tasks}}}
    with pytest.raises(UserError, match=says):
        definition.resolve({"name": "w", "catalog": "c", "stages": stages}, source="w.yaml")


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(scores).failed == 0
