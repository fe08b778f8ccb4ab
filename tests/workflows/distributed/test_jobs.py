"""The demo, small: killed twice on this machine, it goes on as a Ray job on a head node of this machine.

Then what its run looks like from outside.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.evaluation.clicks import total_loss
from models.ranking.ranker import load_ranker
from models.semantic_ids.quantizer import Quantizer
from operators.features.ranker_inputs import Examples, laid_out, predict
from storage import files
from storage.manifest import Manifest
from tests.workflows.kills import SETTINGS, assert_no_row_is_lost, run_with_kills, write_catalog
from workflows.distributed import jobs

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
QUICK = {
    **SETTINGS,
    "catalog": "catalog",
    "stages.quantize.steps": "100",
    "stages.quantize.codebook_sizes": "[16,16]",
    "stages.quantize.workers": "2",
    "stages.rank.epochs": "2",
    "stages.rank.workers": "2",
    "stages.generate.sasrec": "null",  # one generator is enough to wait for
    "stages.generate.language_model": "null",
    "stages.generate.product_codes.fit.steps": "5",
    "stages.generate.product_codes.codewords": "32",
}


def free_port() -> int:
    """Return a port below those that the system gives away: no other Ray of the machine takes it before ours does."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@pytest.fixture(autouse=True)
def _auth_mode_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call in this process sets would make the next Ray of this process ask for a token."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)


@pytest.fixture(scope="module")
def dashboard():
    """The URL of a Ray head that lives as long as this module's tests."""
    port, board = free_port(), free_port()
    command = [BIN / "ray", "start", "--head", "--block", f"--port={port}", f"--dashboard-port={board}"]
    command += ["--num-cpus=5", "--object-store-memory=1000000000", "--disable-usage-stats"]
    command += [f"--dashboard-agent-listen-port={free_port()}"]  # another Ray of this machine may hold the usual one
    # The job's `python` is the one on the head's path, as in an activated environment.
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "RAY_prestart_worker_first_driver": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process for every fit
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    head = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
    url = f"http://127.0.0.1:{board}"
    until = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{url}/api/version", timeout=2)  # noqa: S310 - our own head
            break
        except urllib.error.HTTPError:
            break  # it answers, if only to ask for a token
        except OSError:
            assert time.monotonic() < until, "the Ray head did not come up"
            assert head.poll() is None
            time.sleep(0.5)
    yield url
    os.killpg(head.pid, signal.SIGKILL)  # nothing in it is worth a slow farewell
    head.wait(timeout=60)


@pytest.fixture(scope="module")
def job(dashboard: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[dict[str, Any]]]:
    """The run directory of a job, what the job said, and what an undisturbed run keeps of the catalogue.

    The run was begun on this machine, where all its actors were killed, and later the driver with all its processes.
    It was submitted from the folder that holds the catalogue, which is not the repository.
    """
    place = tmp_path_factory.mktemp("jobs")
    undisturbed = write_catalog(place, items=128, users=60)  # so many that a kill falls between two commits
    demo = str(REPOSITORY / "workflows" / "definitions" / "demo.yaml")
    command = [demo, *(part for key, value in QUICK.items() for part in ("--set", f"{key}={value}"))]
    run_with_kills(command, place / "run", ["all actors", "everything"], len(undisturbed))
    submit = [BIN / "tesserec", "submit", *command, "--address", dashboard, "--run-dir", "run"]
    done = subprocess.run(submit, cwd=place, capture_output=True, text=True, timeout=840, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("raysubmit_")
    return place / "run", done.stderr, undisturbed


@pytest.fixture(scope="module")
def run(job: tuple[Path, str, list[dict[str, Any]]]) -> Path:
    return job[0]


def test_submission_waits_for_the_agent_of_a_head_that_has_just_started(monkeypatch):
    class Client:
        answers = iter([RuntimeError("status code 500: No available agent to submit job"), "raysubmit_1"])

        def submit_job(self, **_):
            answer = next(self.answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

    assert jobs._submit(Client(), "true") == "raysubmit_1"
    monkeypatch.setattr(jobs, "AGENT_SECONDS", -1)
    Client.answers = iter([RuntimeError("No available agent")])
    with pytest.raises(RuntimeError, match="agent"):
        jobs._submit(Client(), "true")


def test_a_run_killed_on_one_machine_goes_on_as_a_job_and_ends_with_the_rows_of_an_undisturbed_one(job):
    run, log, undisturbed = job
    assert_no_row_is_lost(run, undisturbed, log)


def test_every_stage_of_the_job_is_complete_and_no_row_is_lost(run):
    shown = subprocess.run([BIN / "tesserec", "show", run, "--json"], capture_output=True, text=True, check=True).stdout
    manifest = Manifest.model_validate_json((run / "manifest.json").read_text())
    stages = json.loads(shown)["stages"]
    names = ["ingest", "interpret", "project", "quantize", "features", "rank", "generate", "evaluate", "report"]
    assert list(stages) == names
    for name, stage in stages.items():
        assert stage["state"] == "complete", name
        assert stage["rows_in"] == stage["rows_out"] + stage["rejected"]
        assert stage["fingerprint"] == manifest.stages[name].fingerprint


def test_every_item_has_a_caption_or_a_reason_an_embedding_and_its_own_sid(run):
    items = files.read_table(str(run / "items"))
    degraded = {row["item_id"] for row in files.read_table(str(run / "rejects" / "interpret")).to_pylist()}
    assert {row["item_id"] for row in items.to_pylist() if row["caption"] is None} <= degraded
    sids = files.read_table(str(run / "sids"))
    embeddings = files.read_table(str(run / "embeddings"))
    assert (
        set(items["item_id"].to_pylist()) == set(sids["item_id"].to_pylist()) == set(embeddings["item_id"].to_pylist())
    )
    assert len({tuple(codes) for codes in sids["codes"].to_pylist()}) == items.num_rows


def test_both_workers_of_the_quantizer_had_their_rows(run):
    """Its mean is taken over what all workers hold."""
    embeddings = np.stack(files.read_table(str(run / "embeddings"))["embedding"].to_pylist())
    mean = Quantizer.load(str(run / "models" / "quantizer")).mean
    np.testing.assert_allclose(mean.numpy(), embeddings.mean(0), atol=1e-4)


def test_the_exported_ranker_scores_as_the_one_of_two_workers(run):
    ranker = load_ranker(str(run / "models" / "ranker"))
    items, valid = (files.read_table(str(run / "features" / name)) for name in ("items", "valid"))
    examples = Examples(valid, ranker.config.dense)
    scores = predict(ranker, laid_out(items, files.read_table(str(run / "embeddings")), ranker.config), examples)
    wanted = json.loads((run / "manifest.json").read_text())["stages"]["rank"]["metrics"]["valid_log_loss"]
    loss = total_loss(examples.label.numpy(), scores) / len(examples)
    assert loss == pytest.approx(wanted, abs=1e-4)  # its tables are rounded to fp16


def test_evaluation_compares_ranker_popularity_and_truth(run):
    metrics = json.loads((run / "manifest.json").read_text())["stages"]["evaluate"]["metrics"]
    for model in ("ranker", "popularity", "truth"):
        assert {"auc", "user_auc", "log_loss", "ne", "calibration"} <= set(metrics[model])
    assert metrics["ranker"]["auc"] < metrics["truth"]["auc"]
    assert any(key.startswith("recall@") for key in metrics["retriever"])
    for model in ("generator", "product_codes", "content"):
        assert {"recall@10", "ndcg@10"} <= set(metrics[model])


def test_the_report_is_there_and_checkpoints_are_gone(run):
    assert "<html" in (run / "report" / "index.html").read_text()
    assert list((run / "checkpoints").glob("*")) == []


def test_a_head_that_hangs_up_is_asked_for_the_same_job_again(monkeypatch):
    """Whether or not it had taken the job, there is one job."""

    class Head:
        def __init__(self) -> None:
            self.taken: list[str] = []
            self.hung_up = 0

        def submit_job(self, *, submission_id: str, **_: object) -> str:
            if submission_id in self.taken:
                raise RuntimeError(f"Job with submission_id {submission_id} already exists.")
            self.taken.append(submission_id)
            self.hung_up += 1
            raise OSError("Remote end closed connection without response")

    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: None)
    head = Head()
    assert jobs._submit(head, "python -c 1") == head.taken[0]
    assert len(head.taken) == head.hung_up == 1
