from __future__ import annotations

import hashlib

import pytest
from fastapi.testclient import TestClient

from serving.api.routes import http_api
from serving.api.security import Keys, read_keys
from serving.settings import KEYS, Settings
from storage.errors import UserError
from tests.serving.api.test_routes import refused


def line(role: str, key: str) -> str:
    return f"{role}:{hashlib.sha256(key.encode()).hexdigest()}"


LINES = "\n".join(["# of the shop", line("read", "r"), "", line("write", "w"), line("admin", "a"), line("read", "w")])


@pytest.fixture
def guarded(serve, tmp_path) -> TestClient:
    (tmp_path / "keys").write_text(LINES)
    return serve(open=False, keys=str(tmp_path / "keys"))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("headers", [{}, bearer("x"), bearer(""), {"Authorization": "Basic r"}, {"Authorization": "r"}])
@pytest.mark.parametrize("path", ["/v1/quality", "/v1/nothing", "/metrics"])
def test_without_a_known_key(guarded, headers, path) -> None:
    answer = guarded.get(path, headers=headers)
    refused(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", ["r", "w", "a"])
def test_with_a_key(guarded, key) -> None:
    assert guarded.get("/v1/quality", headers=bearer(key)).status_code == 200
    metrics = guarded.get("/metrics", headers=bearer(key))
    if key == "a":
        assert metrics.status_code == 200
    else:
        assert "role admin" in refused(metrics, 403, "forbidden")


def test_a_body_is_not_read_for_a_stranger(guarded, fake) -> None:
    refused(guarded.post("/v1/recommend", content=b"{" * 100), 401, "unauthorized")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/openapi.json"])
def test_what_needs_no_key(guarded, path) -> None:
    assert guarded.get(path).status_code == 200


@pytest.mark.parametrize("text", ["reed", "read:abc", f"root:{'0' * 64}", line("read", "k").upper()])
def test_a_line_that_is_no_key_is_not_shown(text) -> None:
    with pytest.raises(UserError, match=r"Line 2 of F is no key: write role:sha256") as error:
        Keys(f"\n{text}", "F")
    assert text not in str(error.value)


def test_keys_come_from_the_environment(monkeypatch, fake) -> None:
    monkeypatch.setenv(KEYS, LINES)
    assert read_keys(Settings(run="r", store="s"))
    with TestClient(http_api(fake, Settings(run="r", store="s"))) as client:
        refused(client.get("/v1/quality"), 401, "unauthorized")


def test_without_keys_only_who_says_so_is_open(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv(KEYS, raising=False)
    with pytest.raises(UserError, match="no keys, so that anyone could ask it"):
        read_keys(Settings(run="r", store="s"))
    assert not read_keys(Settings(run="r", store="s", open=True))
    with pytest.raises(UserError, match="There is no file of keys at"):
        read_keys(Settings(run="r", store="s", keys=str(tmp_path / "none")))
