"""The command line as a user meets it: what it prints, where, and with which status."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml

from storage.errors import ArtifactError
from storage.manifest import Manifest, require_manifest, write_manifest
from tests.conftest import REPOSITORY

OPENAI = "stages.interpret={caption: {backend: openai, model: x, api_key_env: NO_SUCH_KEY}}"
LOCAL_MODEL = "stages.interpret={caption: {backend: huggingface, model: /no/such}}"
GPU_POOL = "stages.interpret={caption: {pool: {num_gpus: 64}}}"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a good catalogue and a workflow that ingests it; the current directory."""
    (tmp_path / "good").mkdir()
    pl.DataFrame({"item_id": ["a", "b"], "title": ["x", "y"]}).write_csv(tmp_path / "good" / "items.csv")
    (tmp_path / "w.yaml").write_text(yaml.safe_dump({"name": "w", "catalog": "good", "stages": {"ingest": None}}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_run_then_show_then_run_again(place, tesserec):
    status, out, err = tesserec("run", "w.yaml")
    assert (status, "complete" in out) == (0, True)
    assert "ingest: 2 rows" in err
    status, out, _ = tesserec("show", "runs/w", "--json")
    shown = yaml.safe_load(out)
    assert shown["run"] == "runs/w"
    assert set(shown["stages"]["ingest"]) >= {
        "state", "fingerprint", "rows_in", "rows_out", "rejected", "seconds", "rows_per_second", "metrics",
    }  # fmt: skip
    status, _, err = tesserec("run", "w.yaml")
    assert status == 0
    assert "Nothing to do" in err


def test_a_changed_table_runs_anew_and_a_changed_limit_does_not(place, tesserec):
    tesserec("run", "w.yaml")
    assert "Nothing to do" in tesserec("run", "w.yaml", "--set", "stages.ingest.max_reject_share=0.5")[2]
    pl.DataFrame({"item_id": ["a"], "title": ["x"]}).write_csv(place / "good" / "items.csv")
    assert "ingest: 1 rows" in tesserec("run", "w.yaml")[2]
    assert "Nothing to do" in tesserec("run", "w.yaml")[2]
    assert "ingest: 1 rows" in tesserec("run", "w.yaml", "--from", "ingest")[2]


@pytest.mark.parametrize(
    ("problem", "path", "remedy"),
    [
        ("1 items are missing in embeddings", "embeddings", "run again with --from project"),
        ("3 items are missing in sids", "sids", "run again with --from quantize"),
        ("1 items are missing in catalog/items", "catalog/items", "run again with --from ingest"),
        (
            "There is no ranker at s3://a/items/models/ranker",
            "s3://a/items/models/ranker",
            "run again with --run-dir s3://a/items --from rank",
        ),
        ("The ranker at r/models/ranker is damaged", "r/models/ranker", "run again with --run-dir r --from rank"),
        ("The ranker has values that are no numbers in w", "r/models/ranker", "run again with --run-dir r --from rank"),
        (
            "There is no language model there",
            "/r/models/generator/sequential",
            "run again with --run-dir /r --from generate",
        ),
        (
            "There is no projector there",
            "r/checkpoints/ablate_tasks/f/scores/original/models/projector",
            "run again with --run-dir r --from ablate_tasks",
        ),
        (
            "There is no run at runs/x",
            "runs/x/manifest.json",
            "start one with `tesserec run WORKFLOW --run-dir runs/x`",
        ),
        ("x is damaged", "elsewhere/x", "write it anew, or name another"),
    ],
)
def test_an_artifact_that_cannot_be_used_is_named_with_what_writes_it(tesserec, monkeypatch, problem, path, remedy):
    def load(*_):
        raise ArtifactError(problem, path)

    monkeypatch.setattr("workflows.engine.definition.load", load)
    assert tesserec("check", "w.yaml")[::2] == (2, f"tesserec: {problem}: {remedy}.\n")


@pytest.mark.parametrize(("arguments", "again"), [([], ""), (["--from", "ingest"], " without --from")])
@pytest.mark.parametrize("how", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["definition.load", "preflight.preflight", "runner.execute"])
def test_an_interrupted_run_says_how_it_is_resumed(place, tesserec, monkeypatch, arguments, again, how, where):
    def interrupted(*_, **__):
        raise how

    monkeypatch.setattr(f"workflows.engine.{where}", interrupted)
    if where == "preflight.preflight":
        monkeypatch.setattr("workflows.engine.runner.preflight", interrupted)
    status, out, err = tesserec("run", "w.yaml", *arguments)
    assert (status, out) == (130, "")
    assert err == f"Interrupted; the same command{again} goes on from here.\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_stage_interrupts_it(place, tesserec, monkeypatch, number):
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
    monkeypatch.setattr("workflows.stages.ingest.items.canonical_items", lambda *_: os.kill(os.getpid(), number))
    try:
        status, _, err = tesserec("run", "w.yaml")
    finally:
        signal.signal(signal.SIGINT, kept)
    assert (status, err) == (130, "Interrupted; the same command goes on from here.\n")
    assert require_manifest("runs/w").stages["ingest"].state == "interrupted"


def test_ctrl_c_in_a_real_run(place, tesserec):
    hook = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # ignored in a background job
    hook += "import workflows.stages.ingest.items as i, time; "
    hook += "i.canonical_items = lambda *_: (print('reads', flush=True), time.sleep(60)); "
    line = [sys.executable, "-c", hook + "from workflows.cli import main; main()", "run", "w.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, cwd=place, env=environment, text=True, **pipes) as process:
        while process.stdout.readline() != "reads\n":  # libraries may lose a signal in their own calls
            assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1].splitlines()[-1] == "Interrupted; the same command goes on from here."
    assert process.returncode == 130
    assert "failed" not in tesserec("show", "runs/w")[1]
    assert require_manifest("runs/w").stages["ingest"].state == "interrupted"
    assert tesserec("run", "w.yaml")[0] == 0


def test_a_run_that_ends_early_does_not_pass_for_complete(place, tesserec):
    definition = {"name": "w", "catalog": "good", "stages": {"ingest": None, "report": None}}
    (place / "w.yaml").write_text(yaml.safe_dump(definition))
    tesserec("run", "w.yaml")
    pl.DataFrame({"item_id": ["a"], "title": ["x"]}).write_csv(place / "good" / "items.csv")
    tesserec("run", "w.yaml", "--until", "ingest")
    stages = yaml.safe_load(tesserec("show", "runs/w", "--json")[1])["stages"]
    assert {name: stage["state"] for name, stage in stages.items()} == {"ingest": "complete", "report": "pending"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "nope.yaml"], "no workflow definition at nope.yaml"),
        (["run", "w.yaml", "--set", "catalog=nowhere"], "There is no catalogue at"),
        (["run", "w.yaml", "--set", "catalog=wrong"], "has no column 'item_id'"),
        (["run", "w.yaml", "--set", "catalog=empty"], "has no rows"),
        (["run", "w.yaml", "--set", "catalog=dir"], "has no items table"),
        (["run", "w.yaml", "--set", "sed=1"], "did you mean seed?"),
        (["run", "w.yaml", "--set", "seed=lots"], "seed is 'lots'"),
        (["run", "w.yaml", "--set", "seed=-1"], "greater than or equal to 0"),
        (["run", "w.yaml", "--set", GPU_POOL], "leave CPUs to the readers"),
        (
            ["run", "w.yaml", "--set", GPU_POOL.replace("num_gpus", "num_cpus: 0.5, num_gpus")],
            "caption.pool asks for 1 actors",
        ),
        (["check", "w.yaml", "--set", OPENAI], "put it into the environment variable NO_SUCH_KEY"),
        (["run", "w.yaml", "--set", OPENAI.replace("model: x", "model: x, base_url: nowhere")], "no address"),
        (["check", "w.yaml", "--set", LOCAL_MODEL], "There is no model at /no/such"),
        (["check", "w.yaml", "--set", LOCAL_MODEL.replace("huggingface", "vllm")], "There is no model at /no/such"),
        (["check", "w.yaml", "--set", OPENAI.replace("NO_SUCH_KEY", "sk-123")], "must be the name of an environment"),
        (["check", "w.yaml", "--set", "stages.interpret={cache: w.yaml/x}"], "The cache"),
        (
            ["check", "w.yaml", "--set", "stages.interpret.caption.backend=taggr"],
            "choose one of tagger, qformer, huggingface",
        ),
        (["check", "w.yaml", "--set", "stages.interpret={fetch: {pool: {min: 999}}}"], "asks for 999 actors of 1 CPUs"),
        (["run", "w.yaml", "--set", "stages.interpret={}", "--address", "127.0.0.1:1"], "No Ray cluster answers at"),
        (["sample", "w.yaml/x"], "w.yaml/x"),
        (["run", "w.yaml", "--set", "stages.ingest.max_reject_share"], "form key=value"),
        (["run", "w.yaml", "--run-dir", "other"], "a run of the workflow 'other'"),
        (["run", "w.yaml", "--run-dir", "w.yaml/x"], "cannot be written"),
        (["run", "w.yaml", "--run-dir", "junk"], "is not a tesserec manifest"),
        (["run", "w.yaml", "--from", "rank"], "the stages of this workflow are ingest"),
        (["run", "w.yaml", "--nonsense"], "No such option"),
        (["run"], "Missing argument"),
        (["check", "w.yaml", "--set", "catalog=nowhere"], "There is no catalogue at"),
        (["show", "nowhere"], "There is no run at nowhere"),
        (["report", "nowhere"], "There is no run at nowhere"),
        (["serve", "nowhere"], "There is no run at nowhere"),
        (["serve", "other"], "rank"),
        (["build", "other"], "rank"),
        (["import", "netflix", "a", "b"], "choose one of movielens"),
        (["import", "movielens", "nowhere", "b"], "nowhere"),
        (["sample", "good"], "good"),
        (["sample", "new", "--style", "oil"], "style"),
        (["submit", "w.yaml", "--address", "http://127.0.0.1:1"], "took the job"),
        (
            ["submit", "w.yaml", "--address", "http://127.0.0.1:1", "--env", "NO_SUCH"],
            "NO_SUCH: this variable is not set",
        ),
        (["submit", "--address", "http://127.0.0.1:1"], "Name a WORKFLOW to submit, or a job to --stop"),
        (["submit", "--address", "http://127.0.0.1:1", "--stop", "j"], "the dashboard's URL"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(place, tesserec, arguments, says):
    (place / "dir").mkdir()
    (place / "empty").mkdir()
    (place / "empty" / "items.csv").write_text("item_id,title\n")
    (place / "wrong").mkdir()
    (place / "wrong" / "items.csv").write_text("product,title\n1,x\n")
    (place / "junk").mkdir()
    (place / "junk" / "manifest.json").write_text("[]")
    write_manifest(str(place / "other"), Manifest(name="other"))
    before = sorted(map(str, place.rglob("*")))

    status, out, err = tesserec(*arguments)

    assert (status, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert sorted(map(str, place.rglob("*"))) == before


def test_two_runs_in_one_directory_are_kept_apart(place, tesserec):
    tesserec("run", "w.yaml")
    with (place / "runs" / "w" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, _, err = tesserec("run", "w.yaml", "--from", "ingest")
    assert status == 2
    assert "Another run is at work" in err
    assert tesserec("run", "w.yaml", "--from", "ingest")[0] == 0


def test_check_says_what_a_run_would_take(place, tesserec):
    status, out, _ = tesserec("check", "w.yaml")
    assert status == 0
    assert out.startswith("w: ingest")
    assert not Path("runs").exists()


def test_a_stage_that_rejects_too_much_fails_and_says_so(place, tesserec):
    (place / "good" / "items.csv").write_text("item_id,title\na,vase\nb,lamp,too much\nc,chair\n")
    status, _, err = tesserec("run", "w.yaml")
    assert status == 2
    assert "rejected 1 of 3 rows, 1 as unreadable_row" in err
    status, out, _ = tesserec("show", "runs/w", "--json")
    assert yaml.safe_load(out)["stages"]["ingest"]["state"] == "failed"


def test_a_failed_stage_that_the_definition_no_longer_names_is_pending(place, tesserec):
    pl.DataFrame({"item_id": ["a", "a", "b"]}).write_csv(place / "good" / "items.csv")
    tesserec("run", "w.yaml", "--set", "stages.report={}", "--set", "stages.ingest.max_reject_share=1")
    manifest = require_manifest("runs/w")
    manifest.stages["report"].state, manifest.stages["report"].error = "failed", "no room"
    write_manifest("runs/w", manifest)
    assert "report failed: no room" in tesserec("show", "runs/w")[1]
    _, out, err = tesserec("run", "w.yaml", "--set", "stages.ingest.max_reject_share=1")
    assert "Nothing to do" in err
    assert "no room" not in out
    stages = yaml.safe_load(tesserec("show", "runs/w", "--json")[1])["stages"]
    assert {name: entry["state"] for name, entry in stages.items()} == {"ingest": "complete", "report": "pending"}


def test_a_sample_is_summed_up_in_one_line(place, tesserec):
    status, out, _ = tesserec("sample", "new", "--items", "40", "--users", "20")
    assert status == 0
    assert out.startswith("new: 55 items and ")
    assert out.count("\n") == 1
    assert yaml.safe_load(Path("new/catalog.json").read_text())["name"] == "sample"


def test_a_tilde_is_the_home_folder_in_every_path(place, tesserec, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    away = place / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    assert tesserec("run", "~/w.yaml", "--set", "catalog=~/good", "--run-dir=~/run")[0] == 0
    assert "complete" in tesserec("show", "~/run")[1]
    assert tesserec("check", "~/w.yaml", "--set", "catalog=~/good", "--run-dir=~/run")[0] == 0
    assert tesserec("sample", "~/shop", "--items", "40", "--users", "20")[0] == 0
    assert "There is no run at ~/none" in tesserec("sid", "~/none", "--items", "~/x.csv")[2].replace(str(place), "~")
    assert {path.name for path in place.iterdir()} == {"good", "w.yaml", "run", "shop", "away"}
    assert not [*away.iterdir()]


def test_a_full_disk_is_named(place, tesserec, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "/runs/w/items/part-0.parquet")

    monkeypatch.setattr("workflows.engine.runner.execute", full)
    status, _, err = tesserec("run", "w.yaml")
    said = "The disk of /runs/w/items/part-0.parquet is full: make room there and run it again."
    assert (status, err) == (2, f"tesserec: {said}\n")
