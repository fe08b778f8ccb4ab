"""The task ablation on a small run: what its variants are, fits that are killed and run side by side, their results."""

from __future__ import annotations

import doctest
import itertools
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.common.jagged import Jagged
from models.common.recommender import Queries
from models.recommenders.build import task_odds
from models.semantic_ids.quantizer import RQKMEANS, Architecture
from models.semantic_ids.rqkmeans import fit_rqkmeans
from models.semantic_ids.training_rows import collect
from operators.columns import matrix_column, matrix_of
from storage import files
from storage.errors import UserError
from storage.run import RunDir
from tests.logs import write_log
from workflows.distributed import trials
from workflows.engine import definition
from workflows.engine.registry import stage
from workflows.engine.stage import Context
from workflows.stages.ablate_tasks import original_sids, scores
from workflows.stages.ablate_tasks.settings import Config
from workflows.stages.ablate_tasks.variants import ORIGINAL, OWN, make_variants, variant_of, variant_settings

ITEMS, USERS, EVENTS, WIDTH, SIZES = 40, 30, 600, 4, (6, 6)
LANGUAGE_MODEL = {
    "backbone": {"name": "tiny", "layers": 1, "dim": 16, "heads": 2, "mlp": 16, "dropout": 0.0},
    "tasks": ["sids_to_sid", "title_to_sid"],
    "text_tokens": 300,
    "held_out": 0.25,
    "history": 3,
    "beams": 20,
    "fit": {"steps": 4, "batch_size": 8, "warmup": 1, "validate_every": 2, "valid_queries": 10, "precision": "fp32"},
}
SEEDS = (0, 1)
CONFIG = Config(language_model=LANGUAGE_MODEL, seeds=2, queries=20, examples=4, bootstrap=20)


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
    write_log(run, pa.table(log))
    return run


def write_original(run: RunDir, to: RunDir) -> bool:
    """Semantic IDs unlike the run's own in the place of the original ones."""
    items, sids = run.read_table("items"), run.read_table("sids")
    to.write_table(items, "items")
    turned = matrix_of(sids["codes"])[::-1]
    to.write_table(pa.table({"item_id": sids["item_id"], "codes": matrix_column(turned)}), "sids")
    to.write_json({"codebook_sizes": list(SIZES)}, "models", "quantizer", "config.json")
    return True


def context_of(run: RunDir) -> Context:
    return Context(run, run.root, 0, "f", log=str, progress=lambda done, total: None)


def fit(
    run: RunDir,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    seeds: Sequence[int] = SEEDS,
) -> dict[str, list[Any]]:
    """Fit all variants, with the original semantic IDs in their place."""
    runs = {OWN: run, ORIGINAL: RunDir(str(folder / "original"))}
    write_original(run, runs[ORIGINAL])
    return trials.run_trials(
        partial(scores.score, CONFIG, runs, scores.prepare(CONFIG, context_of(run))),
        list(make_variants(CONFIG.language_model)),
        seeds,
        folder=str(folder),
        at_once=2,
        progress=progress,
    )


def scores_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: files.read_json(str(path)) for path in folder.glob("*.json")}


def by_variant(folder: Path, names: Iterable[str], seeds: Sequence[int]) -> dict[str, list[Any]]:
    return {name: [files.read_json(str(folder / f"{name}-{seed}.json")) for seed in seeds] for name in names}


@pytest.fixture
def fitted(run: RunDir, trials_here: None) -> Path:
    """The scores of all variants, fitted once without disturbance."""
    folder = Path(run.root).parent / "undisturbed"
    fit(run, folder)  # what is there is not fitted again
    return folder


def test_tasks_are_added_one_by_one_and_text_alone_has_those_without_captions() -> None:
    settings, variants = Config().language_model, make_variants(Config().language_model)
    assert list(variants) == [*(f"own-{count}" for count in range(1, 9)), "original-6"]
    assert list(variants.values()) == [*(variant_of(OWN, count) for count in range(1, 9)), variant_of(ORIGINAL, 6)]
    learned = [variant_settings(settings, variant).trained_tasks for variant in variants.values()]
    assert all(more[: len(fewer)] == fewer for fewer, more in itertools.pairwise(learned[:8]))
    assert learned[8] == learned[5]
    assert not any("caption" in task.inputs for task in learned[8])


@pytest.mark.parametrize(("share", "main"), [(0.5, 4), (0.25, 2), (0.9, 7), (0.01, 1)])
def test_variants_share_their_steps_and_the_documents_of_the_main_task(share: float, main: int) -> None:
    settings = CONFIG.language_model.model_copy(update={"main_share": share})
    one, two = (variant_settings(settings, variant_of(OWN, count)) for count in (1, 2))
    assert one.fit.batch_size == main
    odds = task_odds(two, 0)
    assert one.fit.batch_size == pytest.approx(two.fit.batch_size * odds[0] / sum(odds), abs=1)
    assert one.fit.steps == two.fit.steps == 4


@pytest.mark.usefixtures("trials_here")
def test_a_killed_ablation_fits_no_variant_twice_and_ends_alike(run: RunDir, fitted: Path, tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []

    def killed(number: int, of: int) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        fit(run, tmp_path, killed)
    (first,) = tmp_path.glob("*.json")
    written = first.stat().st_mtime_ns
    fit(run, tmp_path, lambda *each: done.append(each))
    assert done == [(number, 6) for number in (1, 2, 3, 4, 5, 6)]
    assert first.stat().st_mtime_ns == written
    found, whole = scores_of(tmp_path), scores_of(fitted)
    assert len(whole) == 6
    timeless = [{name: {**one, "seconds": 0} for name, one in each.items()} for each in (found, whole)]
    assert timeless[0] == timeless[1]


@pytest.mark.usefixtures("ray_cluster")
def test_ray_fits_each_variant_by_itself(run: RunDir, fitted: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.undo()  # trials run on Ray again
    done: list[tuple[int, int]] = []
    fit(run, tmp_path, lambda *each: done.append(each), seeds=SEEDS[:1])
    assert done == [(1, 3), (2, 3), (3, 3)]
    found, alone = scores_of(tmp_path), scores_of(fitted)
    assert len(found) == 3
    for name, one in found.items():
        loss = one["tasks"]["sids_to_sid"]["loss"]
        assert loss == pytest.approx(alone[name]["tasks"]["sids_to_sid"]["loss"], abs=1e-3)


def test_variants_are_scored_on_the_tasks_that_they_learned(fitted: Path) -> None:
    scores = scores_of(fitted)
    assert scores["own-1-0.json"]["tasks"].keys() == {"sids_to_sid"}
    assert scores["own-2-0.json"]["tasks"].keys() == {"sids_to_sid", "title_to_sid"}
    assert {len(one["rank"]) for one in scores.values()} == {20}
    assert scores["own-2-0.json"]["tasks"] != scores["original-2-0.json"]["tasks"]


def test_means_over_seeds_stand_with_intervals_and_changes(run: RunDir, fitted: Path) -> None:
    test = scores.prepare(CONFIG, context_of(run)).test
    names = list(make_variants(CONFIG.language_model))
    found = scores.judge(by_variant(fitted, names, SEEDS), CONFIG, test, seed=0)
    assert list(found["variants"]) == ["own-1", "own-2", "original-2"]
    scored, one = scores_of(fitted), found["variants"]["own-2"]
    hits = [np.mean([0 < rank <= 10 for rank in scored[f"own-2-{seed}.json"]["rank"]]) for seed in (0, 1)]
    assert one["seeds"]["recall@10"] == pytest.approx(hits)
    assert one["recall@10"] == pytest.approx(np.mean(hits))
    assert one["recall@10_interval"][0] <= one["recall@10"] <= one["recall@10_interval"][1]
    assert one["added"]["ndcg@10"] == pytest.approx(one["ndcg@10"] - found["variants"]["own-1"]["ndcg@10"])
    assert "added" not in found["variants"]["own-1"].keys() | found["variants"]["original-2"].keys()
    losses = [scored[f"own-2-{seed}.json"]["tasks"]["title_to_sid"]["loss"] for seed in (0, 1)]
    assert one["held_out"]["title_to_sid"]["loss"] == pytest.approx(np.mean(losses))
    assert len(found["compared"]) == 2  # without captions there are no more pairs
    assert len(found["sentences"]) == 3


def test_the_stage_fits_what_is_left_and_writes_what_it_found(run: RunDir, fitted: Path, monkeypatch) -> None:
    folder = Path(run.uri("checkpoints", "ablate_tasks", "print", "scores"))
    shutil.copytree(fitted, folder, ignore=shutil.ignore_patterns("own-2-1.json", "original"))
    shown: list[tuple[int, int]] = []
    monkeypatch.setattr(original_sids, "write_original", lambda context, to: write_original(context.run, to))
    said: list[str] = []
    context = Context(run, "c", 0, "print", said.append, lambda done, total: shown.append((done, total)))
    result = stage("ablate_tasks").run(CONFIG, context)
    assert (result.rows_in, result.rows_out, shown[-1]) == (6, 6, (6, 6))
    written = run.read_json("metrics", "ablate_tasks.json")
    assert (folder / "own-2-1.json").exists()
    assert written["variants"].keys() == result.metrics["variants"].keys() == {"own-1", "own-2", "original-2"}
    assert said == written["sentences"]
    test = scores.prepare(CONFIG, context_of(run)).test
    alone = scores.judge(by_variant(fitted, written["variants"], SEEDS), CONFIG, test, seed=0)
    for name, variant in written["variants"].items():
        assert variant["ndcg@10_interval"] == alone["variants"][name]["ndcg@10_interval"]


def judged(ranks: dict[str, list[np.ndarray]], users: int) -> dict[str, Any]:
    """What the places of the test queries' items in the lists of each variant and seed show."""
    nothing_else = {"step": 1, "seconds": 1.0, "tasks": {"sids_to_sid": {"examples": 0}}}
    fitted = {name: [{"rank": rank.tolist(), **nothing_else} for rank in by_seed] for name, by_seed in ranks.items()}
    nothing = Jagged(torch.zeros(0, dtype=torch.int64), torch.zeros(users + 1, dtype=torch.int64))
    test = Queries(np.arange(users), nothing, torch.zeros(users, dtype=torch.int64), nothing)
    return scores.judge(fitted, Config(), test, seed=0)


def test_what_is_there_is_found_and_what_is_not_is_not_claimed() -> None:
    """Of 400 users 30% are answered; the third task makes it 60%, the sixth 45%, and the others change nothing."""
    random, users = np.random.default_rng(0), 400
    few, many, some, text = (
        [(random.random(users) < share).astype(int) for _ in range(3)] for share in (0.3, 0.6, 0.45, 0.3)
    )
    own = [few, few, many, many, many, some, some, some]
    found = judged({f"own-{count + 1}": ranks for count, ranks in enumerate(own)} | {"original-6": text}, users)
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


def test_seeds_that_disagree_widen_the_interval() -> None:
    users, widths = 300, []
    for shares in ((0.5, 0.5, 0.5), (0.2, 0.5, 0.8)):
        ranks = [(np.random.default_rng(9).random(users) < share).astype(int) for share in shares]
        low, high = judged(dict.fromkeys(make_variants(Config().language_model), ranks), users)["variants"]["own-1"][
            "ndcg@10_interval"
        ]
        widths.append(high - low)
    assert widths[1] > 3 * widths[0]


def test_too_few_users_have_no_intervals() -> None:
    found = judged(dict.fromkeys(make_variants(Config().language_model), [np.ones(5, int)] * 3), 5)
    assert np.isnan(found["variants"]["own-1"]["ndcg@10_interval"]).all()
    assert all("too few users" in sentence for sentence in found["sentences"][:-1])
    assert found["sentences"][-1].endswith("none is shown to change it.")


def test_a_task_that_nothing_is_learned_from_is_found_before_any_fit(run: RunDir) -> None:
    language_model = {**LANGUAGE_MODEL, "tasks": ["sids_to_sid", "caption_to_sid"]}
    config = Config(language_model=language_model)
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
    stages = dict.fromkeys(stage("ablate_tasks").reads) | {"ablate_tasks": {"language_model": {"tasks": tasks}}}
    with pytest.raises(UserError, match=says):
        definition.resolve({"name": "w", "catalog": "c", "stages": stages}, source="w.yaml")


def test_no_variant_has_fewer_documents_of_the_main_task() -> None:
    language_model = {"tasks": ["sids_to_sid", "title_to_sid"], "schedule": "content_first"}
    stages = dict.fromkeys(stage("ablate_tasks").reads) | {"ablate_tasks": {"language_model": language_model}}
    with pytest.raises(UserError, match="set schedule to joint"):
        definition.resolve({"name": "w", "catalog": "c", "stages": stages}, source="w.yaml")


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(scores).failed == 0
