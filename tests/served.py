"""Routes on a local port, in a thread of this process, without Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from serving.api.routes import http_api
from serving.pipeline import Pipeline
from serving.runs.side_by_side import Runs
from serving.settings import read_settings
from serving.stores.opening import open_store
from storage.run import RunDir
from workflows.load import load_users


@contextmanager
def served(run: RunDir) -> Iterator[str]:
    """Serve a run until the block ends; gives the address, such as `http://127.0.0.1:40123`."""
    settings = read_settings(run.root, None).model_copy(update={"open": True})
    load_users(run.root, settings.store, 1_000, lambda done, total: None)
    with listening(http_api(alone(Pipeline(run, open_store(settings.store))), settings)) as url:
        yield url


def alone(pipeline: Pipeline) -> Runs:
    """What serves a run that is loaded, and no other."""
    return Runs(pipeline.store, pipeline.root, lambda run: pipeline)


@contextmanager
def listening(api: FastAPI) -> Iterator[str]:
    """Serve an application until the block ends."""
    server = uvicorn.Server(uvicorn.Config(api, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
