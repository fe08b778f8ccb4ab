"""The routes of a finished run on a local port, in a thread of this process, without Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from serving.api import http_api
from serving.pipeline import Pipeline, Query, Recommendation
from storage.run import RunDir


@contextmanager
def served(run: RunDir) -> Iterator[str]:
    """Serve a run until the block ends; gives the address, such as `http://127.0.0.1:40123`."""
    pipeline = Pipeline(run)

    async def recommend(query: Query) -> Recommendation:
        return pipeline.recommend([query])[0]

    server = uvicorn.Server(uvicorn.Config(http_api(pipeline, recommend), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
