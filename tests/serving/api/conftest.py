from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from fastapi.testclient import TestClient

from serving.api.routes import http_api
from serving.settings import Settings
from tests.serving.api.fake import FakeRun


@pytest.fixture
def fake() -> FakeRun:
    return FakeRun()


@pytest.fixture
def serve(fake: FakeRun) -> Iterator[Callable[..., TestClient]]:
    """Serves the fake run with the settings that a test wants."""
    clients: list[TestClient] = []

    def start(**settings: object) -> TestClient:
        api = http_api(fake, Settings.model_validate({"run": "fake", "store": "fake", "open": True, **settings}))
        clients.append(TestClient(api, raise_server_exceptions=False))
        clients[-1].__enter__()
        fake.queries.clear()
        fake.passes.clear()
        return clients[-1]

    yield start
    for client in clients:
        client.__exit__()


@pytest.fixture
def client(serve: Callable[..., TestClient]) -> TestClient:
    return serve()
