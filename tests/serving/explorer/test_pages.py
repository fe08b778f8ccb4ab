"""The files of the explorer over HTTP."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import serving.explorer
from serving.explorer import mount

FOLDER = Path(serving.explorer.__file__).parent


@pytest.fixture(scope="module")
def client() -> TestClient:
    api = FastAPI()
    mount(api)
    return TestClient(api)


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/style.css", "text/css"), ("/main.js", "text/javascript"), ("/mark.svg", "image/svg+xml")],
)
def test_files_come_with_their_type_and_may_load_nothing_from_elsewhere(client, path: str, kind: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, kind)
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


def test_a_file_that_the_browser_has_is_not_sent_again(client) -> None:
    first = client.get("/style.css")
    again = client.get("/style.css", headers={"If-None-Match": first.headers["etag"]})
    assert first.headers["cache-control"] == again.headers["cache-control"] == "no-cache"
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/__init__.py", "/index.html", "/..%2Fapi.py", "/nothing.js"])
def test_nothing_else_is_served(client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_files_name_only_files_that_are_there(client) -> None:
    for file in FOLDER.glob("*.js"):
        for name in re.findall(r'from "\./(.+?)"|import "\./(.+?)"', file.read_text()):
            assert client.get("/" + "".join(name)).status_code == 200
    for name in re.findall(r'(?:src|href)="([\w.]+)"', (FOLDER / "index.html").read_text()):
        assert client.get(f"/{name}").status_code == 200


def test_no_text_is_parsed_as_html() -> None:
    scripts = "".join(file.read_text() for file in FOLDER.glob("*.js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(", scripts)
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"<style|style=|\son\w+=|<script(?! type=\"module\" src=)|https?://", page)
