"""The demo, small, on an S3 server: killed on this machine, it goes on as Ray jobs on a head node of this machine.

One job is stopped, one goes on while nobody follows it. Then what its run looks like from outside.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
from ray.job_submission import JobStatus

from models.evaluation.clicks import total_loss
from models.ranking.ranker import load_ranker
from models.semantic_ids.quantizer import Quantizer
from operators.features.ranker_inputs import Examples, laid_out, predict
from storage import files
from storage.errors import UserError
from storage.manifest import read_manifest
from tests.s3 import Server
from tests.workflows.kills import SETTINGS, assert_no_row_is_lost, run_with_kills, write_catalog
from workflows.distributed import jobs

pytestmark = [pytest.mark.long, pytest.mark.timeout(1_800)]

REPOSITORY = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
QUICK = {
    **SETTINGS,
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


@pytest.fixture(scope="module")
def dashboard():
    """The URL of a Ray head that lives as long as this module's tests.

    It has a temporary folder of its own: jobs find their head by a file there. In the usual folder the Rays of other
    tests write and remove the same file, and a job would join one of theirs.
    """
    port, board, folder = free_port(), free_port(), tempfile.mkdtemp(prefix="ray")
    command = [BIN / "ray", "start", "--head", "--block", f"--port={port}", f"--dashboard-port={board}"]
    command += ["--num-cpus=5", "--object-store-memory=1000000000", "--disable-usage-stats"]
    command += [f"--temp-dir={folder}"]
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
    shutil.rmtree(folder, ignore_errors=True)


class Job(NamedTuple):
    """A run that ended as a job: where it is, what submit said each time, and the items of an undisturbed run."""

    run: str
    stopped: str
    detached: str
    followed: str
    undisturbed: list[dict[str, Any]]


def stop_job(name: str, dashboard: str, *, check: bool = False) -> subprocess.CompletedProcess[str]:
    """Stop a job by the command."""
    command = [BIN / "tesserec", "submit", "--address", dashboard, "--stop", name]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=check)


@pytest.fixture(scope="module")
def job(dashboard: str, s3_session: Server, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run that was begun on this machine, where the driver was killed with all its processes, and submitted thrice.

    The head knows nothing of the S3 server. Everything was started in a folder that is not the repository.
    """
    place = tmp_path_factory.mktemp("jobs")
    undisturbed = write_catalog(place, items=128, users=60)
    demo = str(REPOSITORY / "workflows" / "definitions" / "demo.yaml")
    with patch.dict(os.environ, s3_session.environment):
        bucket = s3_session.bucket("jobs")
        fs, path = files.filesystem(bucket)
        fs.put(str(place / "catalog"), path, recursive=True)
        run, settings = f"{bucket}/run", {**QUICK, "catalog": f"{bucket}/catalog"}
        command = [demo, *(part for key, value in settings.items() for part in ("--set", f"{key}={value}"))]
        s3_session.slow(0.5)  # a commit takes as long on any machine, so that every end falls between two of them
        run_with_kills(command, place, run, ["everything"], len(undisturbed))

        command += ["--address", dashboard, "--run-dir", run]
        command += [part for name in s3_session.environment for part in ("--env", name)]

        def submitted() -> tuple[subprocess.Popen[str], str]:
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            process = subprocess.Popen([BIN / "tesserec", "submit", *command], cwd=place, **pipes)
            return process, process.stdout.readline().strip()

        process, name = submitted()
        said, lines = iter(process.stderr.readline, ""), list[str]()
        came = any(lines.append(line) or "rows are done already" in line for line in said)
        assert came, "".join(lines[-20:])
        stop_job(name, dashboard, check=True)
        assert read_manifest(run).stages["interpret"].state == "interrupted"
        stopped = "".join(said)
        assert process.wait(timeout=60) != 0, stopped

        s3_session.slow(0)
        s3_session.fail(503, times=5)
        process, name = submitted()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        detached = process.communicate(timeout=60)[1]
        assert process.returncode == 130, detached
        process, same = submitted()
        followed = process.communicate(timeout=840)[1]
        assert process.returncode == 0, followed[-3000:]
        assert same == name
        return Job(run, stopped, detached, followed, undisturbed)


@pytest.fixture
def run(job: Job, s3: Server) -> str:
    return job.run


def test_submission_waits_for_the_agent_of_a_head_that_has_just_started(monkeypatch):
    class Client:
        answers = iter([RuntimeError("status code 500: No available agent to submit job"), "raysubmit_1"])

        def submit_job(self, **_):
            answer = next(self.answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

    assert jobs._submit(Client(), "true", {}, {}) == "raysubmit_1"
    monkeypatch.setattr(jobs, "AGENT_SECONDS", -1)
    Client.answers = iter([RuntimeError("No available agent")])
    with pytest.raises(RuntimeError, match="agent"):
        jobs._submit(Client(), "true", {}, {})


def test_a_run_killed_on_one_machine_goes_on_as_a_job_and_ends_with_the_rows_of_an_undisturbed_one(job, run):
    assert_no_row_is_lost(run, job.undisturbed, job.followed)


def test_a_job_that_is_stopped_says_so(job):
    assert "Interrupted; the same command goes on from here." in job.stopped
    assert re.search(r"raysubmit_\w+ stopped: ", job.stopped.splitlines()[-1])


def test_who_stops_following_a_job_learns_how_to_come_back(job, dashboard):
    said = job.detached.splitlines()[-1]
    assert re.fullmatch(
        r"Stopped following (raysubmit_\w+), which goes on: the same command follows it again, `tesserec submit "
        rf"--address {dashboard} --stop \1` stops it\.",
        said,
    )


def test_every_stage_of_the_job_is_complete_and_no_row_is_lost(run):
    shown = subprocess.run([BIN / "tesserec", "show", run, "--json"], capture_output=True, text=True, check=True).stdout
    manifest = read_manifest(run)
    stages = json.loads(shown)["stages"]
    names = ["ingest", "interpret", "project", "quantize", "features", "rank", "generate", "evaluate", "report"]
    assert list(stages) == names
    for name, stage in stages.items():
        assert stage["state"] == "complete", name
        assert stage["rows_in"] == stage["rows_out"] + stage["rejected"]
        assert stage["fingerprint"] == manifest.stages[name].fingerprint


def test_every_item_has_a_caption_or_a_reason_an_embedding_and_its_own_sid(run):
    items = files.read_table(files.join(run, "items"))
    degraded = {row["item_id"] for row in files.read_table(files.join(run, "rejects", "interpret")).to_pylist()}
    assert {row["item_id"] for row in items.to_pylist() if row["caption"] is None} <= degraded
    sids = files.read_table(files.join(run, "sids"))
    embeddings = files.read_table(files.join(run, "embeddings"))
    assert (
        set(items["item_id"].to_pylist()) == set(sids["item_id"].to_pylist()) == set(embeddings["item_id"].to_pylist())
    )
    assert len({tuple(codes) for codes in sids["codes"].to_pylist()}) == items.num_rows


def test_both_workers_of_the_quantizer_had_their_rows(run):
    """Its mean is taken over what all workers hold."""
    embeddings = np.stack(files.read_table(files.join(run, "embeddings"))["embedding"].to_pylist())
    mean = Quantizer.load(files.join(run, "models", "quantizer")).mean
    np.testing.assert_allclose(mean.numpy(), embeddings.mean(0), atol=1e-4)


def test_the_exported_ranker_scores_as_the_one_of_two_workers(run):
    ranker = load_ranker(files.join(run, "models", "ranker"))
    items, valid = (files.read_table(files.join(run, "features", name)) for name in ("items", "valid"))
    examples = Examples(valid, ranker.config.dense)
    scores = predict(ranker, laid_out(items, files.read_table(files.join(run, "embeddings")), ranker.config), examples)
    wanted = read_manifest(run).stages["rank"].metrics["valid_log_loss"]
    loss = total_loss(examples.label.numpy(), scores) / len(examples)
    assert loss == pytest.approx(wanted, abs=1e-4)  # its tables are rounded to fp16


def test_evaluation_compares_ranker_popularity_and_truth(run):
    metrics = read_manifest(run).stages["evaluate"].metrics
    for model in ("ranker", "popularity", "truth"):
        assert {"auc", "user_auc", "log_loss", "ne", "calibration"} <= set(metrics[model])
    assert metrics["ranker"]["auc"] < metrics["truth"]["auc"]
    assert any(key.startswith("recall@") for key in metrics["retriever"])
    for model in ("generator", "product_codes", "content"):
        assert {"recall@10", "ndcg@10"} <= set(metrics[model])


def test_the_report_is_there_and_checkpoints_are_gone(run):
    assert b"<html" in files.read_bytes(files.join(run, "report", "index.html"))
    assert not files.exists(files.join(run, "checkpoints"))


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
    assert jobs._submit(head, "python -c 1", {}, {}) == head.taken[0]
    assert len(head.taken) == head.hung_up == 1


@pytest.mark.parametrize(("node", "refused"), [("127.0.0.1", False), ("203.0.113.7", True)])
def test_paths_of_this_machine_are_refused_where_nodes_are_others(monkeypatch, node, refused):
    asked = []

    def list_nodes(address, filters):
        asked.append(address)
        return [SimpleNamespace(node_ip="127.0.0.1"), SimpleNamespace(node_ip=node)]

    monkeypatch.setattr("ray.util.state.list_nodes", list_nodes)
    jobs._refuse_paths("http://head:8265", {"catalogue": "s3://b/catalog", "run directory": "file:///mnt/run"})
    assert asked == []
    ends = pytest.raises(UserError, match=rf"The run directory /r lies on this machine, and node {node} of http://head")
    with ends if refused else nullcontext():
        jobs._refuse_paths("http://head:8265", {"catalogue": "s3://b/catalog", "run directory": "/r"})


def test_a_job_that_ends_without_a_word_is_told(capsys):
    class Client:
        async def tail_job_logs(self, job):
            yield "a line\n"

        def get_job_status(self, job):
            return JobStatus.FAILED

        def get_job_info(self, job):
            return SimpleNamespace(status=JobStatus.FAILED, message=None, driver_exit_code=None)

    assert jobs._follow(Client(), "raysubmit_1", "http://head") == 1
    assert capsys.readouterr().err == "a line\nraysubmit_1 failed: it does not say why\n"


def test_a_run_on_which_another_job_is_at_work_is_refused(monkeypatch):
    about = {"run": "s3://b/run", "definition": "another"}
    ended = SimpleNamespace(submission_id="raysubmit_0", metadata=about, status=JobStatus.STOPPED)
    running = SimpleNamespace(submission_id="raysubmit_1", metadata=about, status=JobStatus.RUNNING)
    client = SimpleNamespace(list_jobs=lambda: [ended, running])
    monkeypatch.setattr(jobs, "_head", lambda address: nullcontext(client))
    with pytest.raises(
        UserError, match=r"^raysubmit_1 is at work on s3://b/run with another definition: .* --stop rays"
    ):
        jobs.submit_run("name: w", "s3://b/catalog", "s3://b/run", "http://head")


def test_a_job_that_is_not_there_is_told(dashboard):
    stopped = stop_job("raysubmit_0", dashboard)
    assert stopped.returncode == 2
    assert f"There is no job raysubmit_0 at {dashboard}" in stopped.stderr
