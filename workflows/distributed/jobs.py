"""Runs submitted to a cluster as Ray jobs."""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from storage.errors import UserError
from workflows.distributed.cluster import EXCLUDES, REPOSITORY, WORKER_ENV

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

AGENT_SECONDS = 60.0


def submit_run(definition: str, root: str, address: str, *, wait: bool) -> int:
    """Submits a run, prints the job's id on stdout and, with `wait`, follows its log on stderr.

    The repository's code is sent as the job's working directory and the definition inside the entry point, so the
    cluster needs only the dependencies (see cluster/Dockerfile).

    Args:
        definition: the resolved definition as YAML; its catalogue must be reachable from every node.
        root: URI of the run directory, reachable from every node.
        address: URL of the cluster's dashboard.
        wait: follow the job until it ends.

    Returns:
        0; 1 if the job did not succeed; 130 if the user stopped following it.

    Raises:
        UserError: no dashboard answers at the address.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    if (Path.home() / ".ray" / "auth_token").exists():  # a head started on this machine requires it
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobStatus, JobSubmissionClient

    run = ["python", "-m", "workflows", "run", "submitted.yaml", "--run-dir", root, "--address", "auto"]
    try:
        client = JobSubmissionClient(address)
        job = _submit(client, f"printf %s {shlex.quote(definition)} > submitted.yaml && {shlex.join(run)}")
    except AuthenticationError as error:
        raise UserError(f"{address} requires a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH.") from error
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"No Ray cluster at {address} took the job ({reason}): is it the dashboard's URL?") from error
    print(job, flush=True)  # noqa: T201
    if not wait:
        return 0

    async def follow() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", file=sys.stderr, flush=True)  # noqa: T201

    try:
        asyncio.run(follow())
    except KeyboardInterrupt:
        print(f"Stopped following; the job still runs, `ray job stop {job}` stops it.", file=sys.stderr)  # noqa: T201
        return 130
    return 0 if client.get_job_status(job) == JobStatus.SUCCEEDED else 1


def _submit(client: JobSubmissionClient, entrypoint: str) -> str:
    """Submits the job and returns its id.

    A new head answers before its job agent is up, and a busy one may drop the connection. So it retries for
    `AGENT_SECONDS` with the same id, which never creates a second job.
    """
    until = time.monotonic() + AGENT_SECONDS
    job = f"raysubmit_{secrets.token_hex(8)}"
    while True:
        try:
            return client.submit_job(
                entrypoint=entrypoint,
                submission_id=job,
                runtime_env={"working_dir": str(REPOSITORY), "excludes": EXCLUDES, "env_vars": WORKER_ENV},
            )
        except (OSError, RuntimeError) as error:
            if f"{job} already exists" in str(error):
                return job
            again = isinstance(error, OSError) or "No available agent" in str(error)
            if not again or time.monotonic() > until:
                raise
            time.sleep(1)
