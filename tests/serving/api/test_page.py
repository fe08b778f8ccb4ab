"""The commands of docs/serving.md, as they are written, against a service with keys and one without."""

from __future__ import annotations

import subprocess

import pytest
from PIL import Image

from serving.api.routes import http_api
from serving.settings import KEYS, Settings
from tests.docs.pages import REPOSITORY, commands
from tests.served import listening
from tests.serving.api.fake import FakeRun

COMMANDS = [command for command in commands(REPOSITORY / "docs" / "serving.md") if ".venv" not in command]
OPEN = [command for command in COMMANDS if "localhost" in command and "KEY" not in command]


def run(script: str, url: str, folder) -> str:
    known = (
        script.replace("users/user-748393", "users/user%201")
        .replace("user-748393", "user 1")
        .replace("localhost:8000", url)
        .replace("curl -s", "curl -s --fail")
    )
    known = known.replace("items/item-430802", "items/item%201").replace("item-430802", "item 1")
    done = subprocess.run(["bash", "-ec", known], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, (script, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def url():
    with listening(http_api(FakeRun(), Settings(run="fake", store="s", open=True))) as url:
        yield url


@pytest.mark.parametrize("command", OPEN)
def test_a_command_works(command, url, tmp_path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "photo.jpg")
    assert run(command, url, tmp_path) or (tmp_path / "picture.jpg").stat().st_size


def test_keys(tmp_path, monkeypatch) -> None:
    make, give, ask = (command for command in COMMANDS if command not in OPEN)
    key, lines = run(f"{make}; {give}; echo $KEY; printenv {KEYS}", "", tmp_path).split()
    monkeypatch.setenv(KEYS, lines)
    with listening(http_api(FakeRun(), Settings(run="fake", store="s"))) as url:
        assert "auc" in run(f"KEY={key}; {ask}", url, tmp_path)
