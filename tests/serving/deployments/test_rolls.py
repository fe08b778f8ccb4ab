"""Two replicas under load while runs take each other's place: nobody's request fails, whatever the new run is like."""

from __future__ import annotations

import itertools
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from storage.run import RunDir
from tests.serving.deployments.load import Clients, two_replicas
from tests.serving.finished import next_run

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("rolls")


@pytest.fixture(scope="module")
def store(place: Path) -> str:
    return f"sqlite:{place}/users.db"


@pytest.fixture(scope="module")
def url(speaking_run: RunDir, place: Path) -> Iterator[str]:
    """`tesserec serve` with two replicas, and language models on another one."""
    with two_replicas(speaking_run, place, f"sqlite:{place}/users.db") as (url, _):
        yield url


class Load(Clients):
    """Clients that ask, one request after the other, until they are stopped.

    Attributes:
        failed: what was no answer.
        runs: how many answers came from each run.
    """

    def __init__(self, url: str, clients: int = 3) -> None:
        super().__init__([partial(self._ask, number) for number in range(clients)])
        self.url, self.runs = url, Counter[str]()

    def more(self, answers: int = 20) -> None:
        """Waits for so many more answers."""
        wanted, deadline = self.runs.total() + answers, time.monotonic() + 120
        while self.runs.total() < wanted:
            assert self.failed == []
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def _ask(self, client: int) -> None:
        with httpx.Client(base_url=self.url, timeout=90) as http:
            for number in itertools.count():
                if self.done.is_set():
                    return
                user = f"user {number % 30}"
                try:
                    answer = http.post("/v1/recommend", json={"user_id": user, "k": 3}).raise_for_status().json()
                    self.runs[answer["run"]] += 1
                    item = answer["items"][0]["item_id"]
                    event = {"user_id": user, "item_id": item, "type": "view", "event_id": f"{client} {number}"}
                    event["recommendation_id"] = answer["recommendation_id"]
                    http.post("/v1/events", json=event).raise_for_status()
                    http.get(f"/v1/items/{item}").raise_for_status()
                    http.post("/v1/rank", json={"user_id": user, "items": [item, "item 1"]}).raise_for_status()
                except Exception as error:  # noqa: BLE001 - whatever it is
                    self.failed.append(error)


def test_nobody_notices_that_runs_take_each_others_place(url, store, speaking_run, place, tesserec) -> None:
    new = next_run(speaking_run, place / "new")
    broken = next_run(speaking_run, place / "damaged")
    path = Path(broken.uri("models", "ranker", "model.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])
    silent = next_run(speaking_run, place / "silent")  # its language model alone is missing
    shutil.rmtree(silent.uri("models", "generator", "language_model"))

    def served() -> dict[str, Any]:
        return httpx.get(f"{url}/v1/runs", timeout=60).json()

    (old,) = (run["run"] for run in served()["runs"])
    with Load(url) as load:
        load.more()
        status, out, error = tesserec("roll", new.root, "--store", store)
        assert status == 0, error
        assert out.splitlines()[-1] == f"roll: 2 replicas serve {new.root} (1 of the users)"
        (rolled,) = (run["run"] for run in served()["runs"])
        assert rolled != old
        load.runs.clear()
        load.more(30)
        assert set(load.runs) == {rolled}
        for wrong in (broken, silent):
            status, _, error = tesserec("roll", wrong.root, "--store", store)
            assert status == 2
            assert error.startswith("tesserec: ")
            assert error.count("\n") == 1
        assert [run["run"] for run in served()["runs"]] == [rolled]
        load.more()
        assert tesserec("roll", "--back", "--store", store)[0] == 0
        load.runs.clear()
        load.more(30)
        assert set(load.runs) == {old}
        assert tesserec("roll", new.root, "--store", store, "--share", "0.5")[0] == 0
        load.more(60)
        assert set(load.runs) == {old, rolled}
        state = served()
        assert [(run["run"], run["share"]) for run in state["runs"]] == [(old, 0.5), (rolled, 0.5)]
        assert state["replicas"] == {"alive": 2, "serving": 2}
        assert tesserec("roll", "--back", "--store", store)[0] == 0
        load.more()
    assert load.failed == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Missing option '--store'"),
        (["--store", "S"], "Name a RUN to serve"),
        (["RUN", "--back", "--store", "S"], "Name a RUN to serve"),
        (["--back", "--share", "0.5", "--store", "S"], "Name a RUN to serve"),
        (["RUN", "--shadow", "--share", "0.5", "--store", "S"], "Name a RUN to serve"),
        (["RUN", "--share", "1", "--store", "S"], "--share is a number above 0 and below 1"),
        (["RUN", "--store", "sqlite:/none/users.db"], "There is no store at /none/users.db"),
    ],
)
def test_mistakes_of_the_command(tesserec, arguments, sentence) -> None:
    status, _, error = tesserec("roll", *arguments)
    assert status == 2
    assert error.startswith(f"tesserec: {sentence}")
