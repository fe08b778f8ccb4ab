"""The route that tells of the runs that are served, and answers in the shadow."""

from __future__ import annotations

import time
from dataclasses import replace

from serving.api.runs import EXAMPLE
from tests.serving.api.fake import FakeRun


def waited(client, line: str) -> None:
    deadline = time.monotonic() + 30
    while line not in client.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_runs_are_told(client, fake: FakeRun) -> None:
    fake.warning = "The disk is away: mount it."
    assert client.get("/v1/runs").json() == {**EXAMPLE, "warning": fake.warning}


def test_nobody_sees_what_a_run_in_the_shadow_answers(serve, fake: FakeRun) -> None:
    fake.shadowed = True
    client = serve()
    fake.shown.clear()
    page = client.post("/v1/recommend", json={"user_id": "user 1", "k": 3}).json()
    client.post("/v1/rank", json={"user_id": "user 1", "items": ["item 1"]})  # is asked of no shadow
    assert page["run"] == fake.run
    waited(client, 'tesserec_shadow_items_total{run="unseen:0"} 3.0')
    assert 'tesserec_shadow_same_items_total{run="unseen:0"} 3.0' in client.get("/metrics").text
    client.__exit__()
    (unseen,) = (each for each in fake.shown if not each.shown)
    assert (unseen.recommendation_id, unseen.run) == (f"{page['recommendation_id']}:shadow", "unseen:0")
    assert (unseen.user_id, unseen.items) == ("user 1", [item["item_id"] for item in page["items"]])
    assert [each.route for each in fake.shown if each.shown] == ["/v1/recommend", "/v1/rank"]
    client.__enter__()


def test_what_the_shadow_cannot_do_is_nobodys_loss(serve, fake: FakeRun) -> None:
    fake.shadowed = True
    fake.shadow = lambda queries: 1 / 0
    client = serve()
    assert client.post("/v1/recommend", json={"user_id": "user 1", "k": 3}).status_code == 200
    waited(client, f'tesserec_shadow_lost_total{{run="{fake.run}"}} 1.0')


def test_the_log_and_the_counts_say_which_run_answered(client, fake: FakeRun) -> None:
    fake._answer = lambda *asked, _answer=fake._answer: replace(_answer(*asked), run="second:1")
    assert client.post("/v1/recommend", json={"user_id": "user 1", "k": 3}).json()["run"] == "second:1"
    text = client.get("/metrics").text
    assert 'tesserec_answers_total{route="/v1/recommend",run="second:1",source="history"} 1.0' in text
    assert 'tesserec_requests_total{method="POST",route="/v1/recommend",run="second:1",status="200"} 1.0' in text
    assert f'tesserec_run_info{{run="{fake.run}"}} 1.0' in text
