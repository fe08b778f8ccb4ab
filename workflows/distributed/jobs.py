"""Runs submitted to a cluster as Ray jobs."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shlex
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from storage.errors import UserError
from storage.hashing import fingerprint
from workflows.distributed.cluster import EXCLUDES, REPOSITORY, WORKER_ENV

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

AGENT_SECONDS = 60.0
POLL_S = 1.0
STOP_SECONDS = "60"  # that a stopped run gets to say so in its manifest, before Ray kills it
STOP = "`tesserec submit --address {} --stop {}`"


def submit_run(
    definition: str, catalog: str, root: str, address: str, *, wait: bool = True, env: Sequence[str] = ()
) -> int:
    """Submits a run, prints the job's id on stdout and, with `wait`, follows its log on stderr.

    The packages of `cluster.PACKAGES` are sent as the job's working directory and the definition inside the entry
    point, so the cluster needs only the dependencies (see cluster/Dockerfile). A job that is at work on the same run is
    followed, and no second one submitted.

    Args:
        definition: the resolved definition as YAML.
        catalog: URI of its catalogue, reachable from every node.
        root: URI of the run directory, reachable from every node.
        address: URL of the cluster's dashboard.
        wait: follow the job until it ends.
        env: names of environment variables that the job gets from this process.

    Returns:
        0; the job's own status, or 1, if it did not succeed; 130 if the user stopped following it.

    Raises:
        UserError: no dashboard answers at the address, other nodes do not reach the catalogue or the run directory, a
            variable is not set, or a job with another definition is at work on the run.
    """
    if missing := [name for name in env if name not in os.environ]:
        raise UserError(f"--env {missing[0]}: this variable is not set here, export it first.")
    variables = {name: os.environ[name] for name in env}
    run = ["python", "-m", "workflows", "run", "submitted.yaml", "--run-dir", root, "--address", "auto"]
    about = {"run": root, "definition": fingerprint(definition)}
    with _head(address) as client:
        _refuse_paths(address, {"catalogue": catalog, "run directory": root})
        if under_way := _at_work(client, root):
            job = str(under_way.submission_id)
            if under_way.metadata != about:
                raise UserError(
                    f"{job} is at work on {root} with another definition: wait for it, or stop it by "
                    f"{STOP.format(address, job)}."
                )
        else:
            entrypoint = f"printf %s {shlex.quote(definition)} > submitted.yaml && exec {shlex.join(run)}"
            job = _submit(client, entrypoint, variables, about)
        print(job, flush=True)  # noqa: T201
        return _follow(client, job, address) if wait else 0


def stop_job(job: str, address: str) -> None:
    """Stops a job and waits until it has ended; the run says so in its manifest, and the same command resumes it.

    Raises:
        UserError: no dashboard answers at the address, or it knows no such job.
    """
    with _head(address) as client:
        try:
            client.stop_job(job)
        except RuntimeError as error:
            raise UserError(f"There is no job {job} at {address}: `tesserec submit` prints the id.") from error
        while not client.get_job_status(job).is_terminal():
            time.sleep(POLL_S)


@contextmanager
def _head(address: str) -> Iterator[JobSubmissionClient]:
    """Yields a client of the dashboard; words, for the length of a block, what goes wrong with it."""
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    if (Path.home() / ".ray" / "auth_token").exists():  # a head started on this machine requires it
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.ERROR)  # it tells of every upload
    try:
        yield JobSubmissionClient(address)
    except AuthenticationError as error:
        raise UserError(f"{address} requires a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH.") from error
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"No Ray cluster at {address} took the job or told of it ({reason}): is it the dashboard's URL? The same "
            "command goes on from here."
        ) from error


def _refuse_paths(address: str, places: dict[str, str]) -> None:
    """Refuses plain paths where nodes of the cluster are other machines; what a node mounts, `file://` names.

    Raises:
        UserError: a place is a path of this machine alone.
    """
    local = {what: place for what, place in places.items() if "://" not in place}
    if not local:
        return
    from ray.util.state import list_nodes

    others = [node.node_ip for node in list_nodes(address, [("state", "=", "ALIVE")]) if not _is_here(node.node_ip)]
    for what, place in local.items() if others else ():
        raise UserError(
            f"The {what} {place} lies on this machine, and node {others[0]} of {address} is another: name a place that "
            f"all nodes reach, such as s3://BUCKET/PATH, or write file://{place} where each of them mounts it."
        )


def _is_here(address: str) -> bool:
    """Tells whether an IP address is one of this machine's."""
    with suppress(OSError), socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        return True
    return False


def _at_work(client: JobSubmissionClient, root: str) -> JobDetails | None:
    jobs = (job for job in client.list_jobs() if (job.metadata or {}).get("run") == root)
    return next((job for job in jobs if not job.status.is_terminal()), None)


def _follow(client: JobSubmissionClient, job: str, address: str) -> int:
    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", file=sys.stderr, flush=True)  # noqa: T201

    try:
        asyncio.run(tail())
        while not client.get_job_status(job).is_terminal():  # its log ends a moment before
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        ends = f"the same command follows it again, {STOP.format(address, job)} stops it"
        print(f"Stopped following {job}, which goes on: {ends}.", file=sys.stderr)  # noqa: T201
        return 130
    ended = client.get_job_info(job)
    if ended.status == "SUCCEEDED":
        return 0
    said = (ended.message or "it does not say why").partition("\n")[0]
    print(f"{job} {ended.status.lower()}: {said}", file=sys.stderr)  # noqa: T201
    return ended.driver_exit_code or 1


def _submit(client: JobSubmissionClient, entrypoint: str, env: dict[str, str], metadata: dict[str, str]) -> str:
    """Submits the job and returns its id.

    A new head answers before its job agent is up, and a busy one may drop the connection. So it retries for
    `AGENT_SECONDS` with the same id, which never creates a second job.
    """
    until = time.monotonic() + AGENT_SECONDS
    job = f"raysubmit_{secrets.token_hex(8)}"
    variables = {**WORKER_ENV, "RAY_JOB_STOP_WAIT_TIME_S": STOP_SECONDS, **env}
    while True:
        try:
            return client.submit_job(
                entrypoint=entrypoint,
                submission_id=job,
                metadata=metadata,
                runtime_env={"working_dir": str(REPOSITORY), "excludes": EXCLUDES, "env_vars": variables},
            )
        except (OSError, RuntimeError) as error:
            if f"{job} already exists" in str(error):
                return job
            again = isinstance(error, OSError) or "No available agent" in str(error)
            if not again or time.monotonic() > until:
                raise
            time.sleep(1)
