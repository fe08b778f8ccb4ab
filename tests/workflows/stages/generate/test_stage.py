"""The stage generate on a small log: fits that are killed and gone on with, and what is left of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from models.common.jagged import Jagged
from models.recommenders import fitting
from models.recommenders.artifacts import load
from models.recommenders.sasrec import SasRecConfig
from storage import files
from storage.errors import UserError
from storage.manifest import Manifest, StageEntry, write_manifest
from storage.run import RunDir
from tests.workflows.local_fits import local_fits
from tests.workflows.stages.generate.test_build import (
    LANGUAGE_MODEL,
    PRODUCT_CODES,
    RPG,
    SASREC,
    SPLIT,
    read,
    write_run,
)
from workflows.distributed import training
from workflows.engine.registry import stage
from workflows.engine.runner import forget_other_attempts
from workflows.engine.stage import Context, Result
from workflows.stages.generate import build
from workflows.stages.generate.settings import GENERATORS, Config

pytestmark = pytest.mark.long

CONFIG = Config.model_validate(
    {
        "product_codes": {**PRODUCT_CODES, "fit": {**PRODUCT_CODES["fit"], "averaged": 2}},
        "rpg": {**RPG, "model": {**RPG["model"], "cold_bonus": "auto"}},
        "language_model": LANGUAGE_MODEL,
        "sasrec": SASREC,
        "ensemble": {"of": ["sasrec", "product_codes"], "parts": 2},
        "cpus_per_worker": 1,
        "checkpoint_s": 0,
    }
    | {"filter_seen": False, "rescore": "sasrec"}
)
RESCORED = "language_model+sasrec"
NAMES = ["sasrec", "product_codes", "rpg", "language_model"]
REPORT = training.report
METRICS = ("valid_recall@10", "valid_ndcg@10")
WITHOUT_RAY = """
import json, sys
sys.modules["ray"] = None  # every import of it fails from now on
import torch
from models.common.jagged import Jagged
from models.recommenders.artifacts import load
lists = Jagged(torch.tensor([3, 5, 7]), torch.tensor([0, 2, 2, 3]))
print(json.dumps([load(uri).recommend(lists, k=6).items.tolist() for uri in sys.argv[1:]]))
"""


def context_of(run: RunDir, log: Callable[[str], None] = lambda line: None) -> Context:
    return Context(run, "", seed=3, fingerprint="f1", log=log, progress=lambda done, total: None, split=SPLIT)


def killed(metrics: dict[str, Any], save: Any, *, every_s: float) -> None:
    """A report that ends the fit behind the first validation of product codes."""
    REPORT(metrics, save, every_s=every_s)
    if metrics["name"] == "product_codes" and metrics["step"] == 20:
        raise UserError("Killed.")


def going_on(metrics: dict[str, Any], save: Any, *, every_s: float) -> None:
    """A report for an attempt that must not fit SASRec, nor begin anew with product codes."""
    if metrics["name"] == "sasrec" or (metrics["name"] == "product_codes" and metrics["step"] == 0):
        raise UserError(f"The fit of {metrics['name']} begins anew.")
    REPORT(metrics, save, every_s=every_s)


class Ended:
    """A stage that was killed and started again."""

    def __init__(self, root: Path) -> None:
        self.run, self.said = write_run(root), list[str]()
        with pytest.MonkeyPatch.context() as patch, local_fits():
            patch.setattr(training, "report", killed)
            with pytest.raises(UserError, match="Killed"):
                stage("generate").run(CONFIG, context_of(self.run))
            self.unfinished = not files.exists(self.run.uri("metrics", "generate.json"))
            patch.setattr(training, "report", going_on)
            self.result: Result = stage("generate").run(CONFIG, context_of(self.run, self.said.append))
        self.metrics: dict[str, Any] = self.run.read_json("metrics", "generate.json")


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return Ended(tmp_path_factory.mktemp("run"))


def test_what_was_fitted_is_not_fitted_again(ended: Ended) -> None:
    assert ended.unfinished
    assert list(ended.metrics["history"]) == NAMES
    said = [line.split(" is best")[0] for line in ended.said if " is best" in line]  # of earlier fits at the end
    assert sorted(said) == sorted(f"generate: {name}" for name in ended.metrics["history"])


def test_a_killed_fit_goes_on_to_what_an_undisturbed_one_reaches(ended: Ended) -> None:
    data = read(ended.run)
    assert CONFIG.product_codes is not None
    task = build.training_task(CONFIG.product_codes, ended.run, data, seed=3)
    wanted: list[dict[str, Any]] = []
    states: list[dict[str, torch.Tensor]] = []
    fitting.fit(
        CONFIG.product_codes.fit,
        task,
        data.valid,
        fitting.Callbacks(
            lambda metrics, _: wanted.append(metrics),
            lambda _, tensors: states.append({name: value.clone() for name, value in tensors.items()}),
        ),
        seed=3,
        filter_seen=False,
    )
    wanted = [metrics for metrics in wanted if METRICS[1] in metrics]
    found = ended.metrics["history"]["product_codes"]
    assert [metrics["step"] for metrics in found] == [20, 40, 60, 60]
    for one, other in zip(found, wanted, strict=True):
        for name in ("train_loss", *METRICS) if "train_loss" in other else METRICS:
            assert one[name] == pytest.approx(other[name], rel=1e-4), name
    told, best = ended.result.metrics["product_codes"]["averaged"], max(each[METRICS[1]] for each in found[:3])
    assert told["steps"] == found[3]["averaged"] == wanted[3]["averaged"]
    assert (told[METRICS[1]], told["best_state"]) == (found[3][METRICS[1]], best)
    assert told["kept"] == (found[3][METRICS[1]] > best)
    loaded = load(build.artifact_uri(ended.run, "product_codes"))
    torch.testing.assert_close(dict(loaded.state_dict()), states[-1], rtol=1e-3, atol=1e-5)


def test_the_generator_with_the_better_lists_is_chosen(ended: Ended) -> None:
    valid, data = ended.metrics["valid"], read(ended.run)
    assert set(valid) == {*NAMES, "item_knn", "ensemble", RESCORED}
    for name in valid:
        recommender = build.load_recommender(ended.run, name)
        again = fitting.validate(recommender, data.valid, filter_seen=False)
        assert valid[name] == pytest.approx({key: again[key] for key in METRICS})
        if name not in NAMES:
            continue
        best = max(ended.metrics["history"][name], key=lambda point: point.get(METRICS[1], -1.0))
        assert valid[name] == pytest.approx({key: best[key] for key in METRICS})
    chosen = max((*GENERATORS, RESCORED), key=lambda name: valid[name][METRICS[1]])
    assert ended.metrics["chosen"] == ended.result.metrics["chosen"] == chosen
    assert ended.metrics["queries"] == {"history": 8, "repeats": True}
    assert ended.result.rows_in == ended.result.rows_out == len(data.sequences.values)
    ids = ended.run.read_table("models", "generator", "items")["item_id"]
    assert ids.to_pylist() == data.item_ids.to_pylist()


def test_the_ensemble_is_told_beside_its_members(ended: Ended) -> None:
    weights, valid = ended.metrics["ensemble"], ended.metrics["valid"]
    assert list(weights) == ["sasrec", "product_codes"]
    assert sum(weights.values()) == 1
    assert ended.result.metrics["ensemble"]["weights"] == weights
    assert valid["ensemble"][METRICS[1]] >= max(valid[name][METRICS[1]] for name in weights)  # each alone was tried
    assert [line for line in ended.said if "the weights of the ensemble are sasrec" in line]


def test_a_bonus_that_validation_cannot_choose_is_none_and_a_line_says_so(ended: Ended) -> None:
    assert ended.result.metrics["rpg"]["cold_bonus"] == 0
    line = "generate: the cold bonus of rpg is 0; no validation query asks for an item without an event"
    assert ended.said.count(line) == 1
    assert "cold_bonus" not in ended.result.metrics["product_codes"]
    assert build.load_recommender(ended.run, "rpg").config.cold_bonus == 0


def test_tasks_are_followed_from_before_the_first_step(ended: Ended) -> None:
    curve = ended.metrics["history"]["language_model"]
    assert [point["step"] for point in curve] == [0, 20, 40, 60]
    assert all(set(point["losses"]) == set(LANGUAGE_MODEL["tasks"]) for point in curve)
    assert curve[-1]["losses"]["sids_to_sid"] < curve[0]["losses"]["sids_to_sid"]


def test_artifacts_recommend_where_there_is_no_ray(ended: Ended) -> None:
    names = [*NAMES, "item_knn", "ensemble", RESCORED]
    command = [sys.executable, "-c", WITHOUT_RAY, *(build.artifact_uri(ended.run, name) for name in names)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert found.returncode == 0, found.stderr
    lists = Jagged(torch.tensor([3, 5, 7]), torch.tensor([0, 2, 2, 3]))
    wanted = [build.load_recommender(ended.run, name).recommend(lists, k=6).items.tolist() for name in names]
    assert json.loads(found.stdout) == wanted


def test_what_another_attempt_left_is_not_taken_for_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record of a fit says nothing of the artifact once settings were changed and changed back."""
    run, fitted = write_run(tmp_path), list[tuple[int, bool]]()

    def fit(loop: Any, task: dict[str, Any], *, run: RunDir, name: str, **_: Any) -> None:
        state = run.uri("checkpoints", name, "state.json")
        fitted.append((task["settings"]["sasrec"]["model"]["dim"], files.exists(state)))
        files.write_json(state, {})
        raise UserError("Killed.")

    monkeypatch.setattr(training, "fit", fit)
    other = CONFIG.model_copy(update={"sasrec": CONFIG.sasrec.model_copy(update={"model": SasRecConfig(dim=32)})})
    for config, fingerprint in ((CONFIG, "a"), (CONFIG, "a"), (other, "b"), (CONFIG, "a")):
        context = replace(context_of(run), fingerprint=fingerprint)
        forget_other_attempts(context, "generate")  # as the runner does
        with pytest.raises(UserError, match="Killed"):
            stage("generate").run(config, context)
    own = CONFIG.sasrec.model.dim
    assert fitted == [(own, False), (own, True), (32, False), (own, False)]


def test_models_that_know_what_is_held_back_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, before, tasks = write_run(tmp_path / "run"), str(tmp_path / "before"), list[dict[str, Any]]()

    def fit(loop: Any, task: dict[str, Any], **_: Any) -> None:
        tasks.append(task)
        raise UserError("Killed.")

    monkeypatch.setattr(training, "fit", fit)
    for until in (None, 5):  # as of a split of each user's last events, and of one by time
        entry = StageEntry(state="complete", metrics={"learned_until": until})
        write_manifest(before, Manifest(name="shop", stages={"generate": entry}))
        with pytest.raises(UserError, match="Killed"):
            stage("generate").run(CONFIG.model_copy(update={"previous": before}), context_of(run))
    assert [task["settings"]["previous"] for task in tasks] == [before, None]


def test_what_cannot_be_fitted_is_explained_before_anything_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path)
    items = run.read_table("items")
    run.write_table(items.set_column(2, "caption", pa.nulls(len(items), pa.string())), "items")
    monkeypatch.setattr(training, "fit", None)
    for wrong, told in (
        ({"tasks": [*LANGUAGE_MODEL["tasks"], "caption_to_title"]}, "nothing to learn task caption_to_title from"),
        ({"tokens_per_row": 8}, "Rows of 8 tokens have no room for two items"),
    ):
        settings = CONFIG.language_model.model_validate({**LANGUAGE_MODEL, **wrong})
        with pytest.raises(UserError, match=told):
            stage("generate").run(CONFIG.model_copy(update={"language_model": settings}), context_of(run))
    many = CONFIG.model_copy(update={"product_codes": CONFIG.product_codes.model_copy(update={"codewords": 64})})
    with pytest.raises(UserError, match=r"lower stages\.generate\.product_codes\.codewords"):
        stage("generate").run(many, context_of(run))
    files.remove(run.uri("log"))
    with pytest.raises(UserError, match="has no interactions"):
        stage("generate").run(CONFIG, context_of(run))


def test_settings_that_do_not_fit_and_what_results_depend_on() -> None:
    with pytest.raises(ValueError, match="keep one of product_codes, rpg, language_model"):
        Config(product_codes=None, language_model=None)
    for left_out in ("language_model", "sasrec"):
        with pytest.raises(ValueError, match="rescore takes language_model and sasrec: keep both"):
            Config.model_validate({"rescore": "sasrec", left_out: None})
    with pytest.raises(ValueError, match=r"set sasrec\.fit\.batch_size to 65 or more"):
        Config(workers=65)
    with pytest.raises(ValueError, match=r"ensemble is of sasrec, which is left out: keep sasrec, or set ensemble"):
        Config.model_validate({"sasrec": None, "ensemble": {}})
    with pytest.raises(ValueError, match="name each one once"):
        Config.model_validate({"ensemble": {"of": ["sasrec", "sasrec"]}})
    quick = CONFIG.model_copy(update={"cpus_per_worker": 4, "use_gpu": True, "strategy": "fsdp", "checkpoint_s": 9})
    assert quick.identity() == CONFIG.identity()
    assert CONFIG.model_copy(update={"filter_seen": True}).identity() != CONFIG.identity()
    assert CONFIG.reads_split()
    assert CONFIG.history == 8
    long = CONFIG.model_copy(update={"language_model": CONFIG.language_model.model_copy(update={"history": 30})})
    assert long.history == 30
