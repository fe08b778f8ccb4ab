from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving.filters import Condition
from serving.local import check_port, here, user_mistake
from serving.pipeline import Pipeline
from serving.query import Query
from serving.settings import KEYS, Settings
from storage.errors import UserError
from storage.run import RunDir
from tests.serving.finished import store_of

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = "import sys; sys.path.append(sys.argv.pop(1)); from workflows.cli import main; main()"


def tesserec(*arguments: str, cwd: str) -> subprocess.Popen[str]:
    """The command, from any folder, with pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(REPOSITORY), *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
    )


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def service(speaking_run: RunDir, port: int) -> Iterator[subprocess.Popen[str]]:
    """`tesserec serve` on a relative run; the tests of this file share it, the last one ends it."""
    parent, name = speaking_run.root.rsplit("/", 1)
    process = tesserec("serve", name, "--port", str(port), cwd=parent)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(f"Serving {speaking_run.root} at http://127.0.0.1:{port} "), (
            line + process.communicate()[1]
        )
        yield process
    finally:
        process.kill()


def test_answers_over_http(service, speaking_run, port) -> None:
    """The language model of the service is in a process of its own, that of the pipeline in this one."""
    pipeline = Pipeline(speaking_run, store_of(speaking_run))
    kinds = Condition(attribute="kind", among=("1", "2"))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        assert client.get("/readyz").json()["status"] == "ready"
        for query, more in (
            (Query(user_id="user 4", k=5), {}),
            (Query(history=["item 2", "?"]), {}),
            (Query(history=["item 2"], k=3, recommenders=("language_model",)), {"recommenders": ["language_model"]}),
            (Query(history=["item 2"], where=kinds), {"where": kinds.model_dump(by_alias=True, exclude_none=True)}),
        ):
            body = {"k": query.k, **more}
            body |= {"user_id": query.user_id} if query.user_id else {"history": query.history}
            answer, expected = client.post("/v1/recommend", json=body).json(), pipeline.recommend([query])[0]
            assert [i["item_id"] for i in answer["items"]] == [i.item_id for i in expected.items]
            assert [i["score"] for i in answer["items"]] == pytest.approx([i.score for i in expected.items])
            assert [i["recommenders"] for i in answer["items"]] == [i.recommenders for i in expected.items]
            assert (answer["source"], answer["unknown"]) == (expected.source, expected.unknown)
        assert client.post("/v1/recommend", json={}).status_code == 422
        assert client.get("/v1/items/item 6").json() == {"run": pipeline.run, **pipeline.item("item 6")}
        assert client.get("/v1/items/none").status_code == 404


def test_the_port_in_use_is_the_users_to_mend(service, finished_run, port) -> None:
    process = tesserec("serve", finished_run.root, "--port", str(port), cwd=finished_run.root)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert error.startswith(f"tesserec: Cannot listen on 127.0.0.1:{port} ")
    assert error.count("\n") == 1


def test_ends_on_sigterm_with_nothing_more_to_say(service, port) -> None:
    service.send_signal(signal.SIGTERM)
    assert service.communicate(timeout=60)[0] == ""
    assert service.returncode == 0
    check_port("127.0.0.1", port)


@pytest.mark.parametrize("port", [0, -1, 65_536])
def test_no_port(port) -> None:
    with pytest.raises(UserError, match="between 1 and 65535"):
        check_port("127.0.0.1", port)


def test_an_address_of_another_machine() -> None:
    with pytest.raises(UserError, match=r"Cannot listen on 192\.0\.2\.1"):
        check_port("192.0.2.1", 8000)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_alone_needs_no_key(host, monkeypatch) -> None:
    monkeypatch.delenv(KEYS, raising=False)
    assert here(Settings(run="r", store="s"), host).open


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "shop.example"])  # noqa: S104
def test_where_others_could_ask_there_have_to_be_keys(host, monkeypatch) -> None:
    monkeypatch.delenv(KEYS, raising=False)
    with pytest.raises(UserError, match="no keys, so that anyone could ask it"):
        here(Settings(run="r", store="s"), host)
    monkeypatch.setenv(KEYS, "read:" + "0" * 64)
    assert not here(Settings(run="r", store="s"), host).open


def test_a_mistake_is_found_at_the_end_of_a_replicas_traceback() -> None:
    trace = "failed to start:\nTraceback ...\n  File ...\n"
    assert user_mistake(f"{trace}storage.errors.UserError: The ranker: damaged.\n") == "The ranker: damaged."
    assert user_mistake(f"{trace}ValueError: UserError: no") is None
    assert user_mistake("") is None
