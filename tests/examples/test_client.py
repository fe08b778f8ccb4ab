"""The client asks a real service; an answer that is lost on the way does nothing twice."""

from __future__ import annotations

import importlib.util
import itertools
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import ModuleType

import pytest

from tests.served import listening, served
from tests.serving.api.fake import FakeRun
from tests.serving.finished import write_run

EXAMPLE = Path(__file__).parents[2] / "examples" / "client.py"


# Nothing; what Ray Serve's proxy says when a replica dies with a request; what the service says when time is over.
ANSWERS = {
    "closed": b"",
    "500": b"HTTP/1.1 500 Internal Server Error\r\ncontent-type: text/plain\r\ncontent-length: 4\r\n\r\nlost",
    "503": b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n",
}
LOST = pytest.mark.parametrize("instead", ANSWERS.values(), ids=ANSWERS)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("client", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(write_run(tmp_path_factory.mktemp("served") / "run", labels=True)) as url:
        yield url


@contextmanager
def losing_the_first_answer(url: str, instead: bytes = b"") -> Iterator[str]:
    """Passes connections on to a service; says something else when the first answer comes, and closes."""
    port = int(url.rpartition(":")[2])
    with closing(socket.create_server(("127.0.0.1", 0))) as front:
        threading.Thread(target=_pass_on, args=(front, port, instead), daemon=True).start()
        yield f"http://127.0.0.1:{front.getsockname()[1]}"


def _pass_on(front: socket.socket, port: int, instead: bytes) -> None:
    for number in itertools.count():
        try:
            asker, _ = front.accept()
        except OSError:
            return
        service = socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=_copy, args=(asker, service), daemon=True).start()
        if number:
            threading.Thread(target=_copy, args=(service, asker), daemon=True).start()
        else:
            service.recv(1)
            asker.sendall(instead)
            asker.shutdown(socket.SHUT_RDWR)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while content := source.recv(1 << 16):
            target.sendall(content)


def test_it_asks_for_items_page_after_page(example: ModuleType, url: str) -> None:
    with example.Client(url) as service:
        pages = [[item["item_id"] for item in page["items"]] for page in service.pages(user_id="user 4", k=10)]
        found = service.rank(pages[0], history=["item 2"])
        assert {item["item_id"] for item in found["items"]} == set(pages[0])
        assert service.item(pages[0][0])["item_id"] == pages[0][0]
    ids = [item for page in pages for item in page]
    assert len(pages) > 2
    assert len(ids) == len(set(ids))


def test_what_the_service_refuses_is_an_error_with_its_sentence(example: ModuleType, url: str) -> None:
    with example.Client(url) as service:
        with pytest.raises(example.ServiceError, match="There is no item 'nothing'") as refused:
            service.item("nothing")
        assert (refused.value.status, refused.value.code) == (404, "not_found")
        with pytest.raises(example.ServiceError, match="k: "):
            service.recommend(user_id="user 4", k=1_000)


@LOST
def test_an_event_whose_answer_is_lost_is_kept_once(example: ModuleType, url: str, instead: bytes) -> None:
    with losing_the_first_answer(url, instead) as front, example.Client(front) as service:
        kept = service.event(f"somebody new {len(instead)}", "item 2", "like")
    assert (kept["added"], kept["known"]) == (0, 1)  # the second time


@LOST
def test_an_item_whose_answer_is_lost_is_the_one_that_was_posted(example: ModuleType, instead: bytes) -> None:
    fake = FakeRun()
    with listening_to(fake) as url:
        with losing_the_first_answer(url, instead) as front, example.Client(front) as service:
            assert service.post_item("item/new", title="A new thing")["item_id"] == "item/new"
        with losing_the_first_answer(url, instead) as front, example.Client(front) as service:
            assert service.change_item("item/new", hidden=True)["hidden"]
        with losing_the_first_answer(url, instead) as front, example.Client(front) as service:
            service.delete_item("item/new")
        with example.Client(url) as service, pytest.raises(example.ServiceError, match="There is no item"):
            service.delete_item("item/new")


def test_a_stale_cursor_is_told_although_the_first_answer_was_lost(example: ModuleType, url: str) -> None:
    with losing_the_first_answer(url) as front, example.Client(front) as service:
        with pytest.raises(example.ServiceError) as refused:
            service.recommend(user_id="user 4", cursor="of another run")
        assert refused.value.status in (409, 422)


@contextmanager
def listening_to(fake: FakeRun) -> Iterator[str]:
    from serving.api.routes import http_api
    from serving.settings import Settings

    with listening(http_api(fake, Settings.model_validate({"run": "fake", "store": "fake", "open": True}))) as url:
        yield url


@pytest.mark.parametrize("who", [["--user", "user 4"], ["--liked", "item 2"]])
def test_it_is_a_command_as_well(
    who: list[str], example: ModuleType, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["client.py", "--url", url, "-k", "3", *who])
    example.main()
    said = capsys.readouterr().out
    assert "60 items" in said
    assert said.count("item ") >= 3
    assert "candidates from history" in said
