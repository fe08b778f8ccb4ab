"""The whole story, through the page over real runs: somebody new, likes, an item of their own, a roll, and back."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from serving.api.routes import http_api
from serving.runs import rolling, side_by_side
from serving.runs.opening import open_run
from serving.runs.side_by_side import Runs
from serving.settings import Settings
from serving.stores.opening import open_store
from storage.run import RunDir
from tests.served import listening
from tests.serving.explorer.looking import cards, keep, needs_chromium, settle
from tests.serving.finished import next_run
from tests.serving.interpreted import png
from workflows.load import load_users

pytestmark = needs_chromium
USER = "nora"


@pytest.fixture(scope="module")
def runs(interpreted_run, tmp_path_factory) -> tuple[RunDir, RunDir]:
    """A run of real models, and the one that follows it."""
    return interpreted_run, next_run(interpreted_run, tmp_path_factory.mktemp("story") / "next")


@pytest.fixture(scope="module")
def store(runs, tmp_path_factory) -> str:
    uri = f"sqlite:{tmp_path_factory.mktemp('users') / 'users.db'}"
    load_users(runs[0].root, uri, 100, lambda done, total: None)
    return uri


@pytest.fixture(scope="module")
def address(runs, store) -> Iterator[str]:
    """The service itself; it looks often at what it is to serve."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (side_by_side, rolling):
            patch.setattr(module, "LOOK_S", 0.02)
        patch.setattr(side_by_side, "BEAT_S", 0.2)
        served = Runs(open_store(store), runs[0].root, lambda root: open_run(root, open_store(store)))
        with listening(http_api(served, Settings(run=runs[0].root, store=store, open=True))) as url:
            yield url


def listed(page: Page) -> list[str]:
    return cards(page).evaluate_all("cards => cards.map(card => card.dataset.id)")


def shown(page: Page) -> list[str]:
    """Asks for the list of the user."""
    page.get_by_role("link", name="Recommend").click()
    page.fill("#user", USER)
    page.get_by_role("button", name="Show", exact=True).click()
    settle(page)
    expect(cards(page)).not_to_have_count(0)
    return listed(page)


def runs_of(page: Page) -> list[str]:
    """Reads which runs are served."""
    page.get_by_role("link", name="Quality").click()
    page.reload()  # it may have been there before
    settle(page)
    expect(page.locator("#runs article").first).to_be_visible()
    return page.locator("#runs h3").all_inner_texts()


def test_somebody_new_likes_posts_and_keeps_it_all_through_a_roll_and_back(visit, runs, store, tesserec) -> None:
    page = visit("#/recommend")
    before = shown(page)
    expect(page.locator("#recommend .said")).to_contain_text("nothing is known of this user")
    for _ in range(2):
        liked = cards(page).first.get_attribute("data-id")
        cards(page).first.locator(".like").click()
        expect(page.locator(f"#history [data-id='{liked}']")).to_have_count(1)
        expect(page.locator(f"#recommend .card[data-id='{liked}']")).to_have_count(0)
    assert listed(page) != before

    page.get_by_role("link", name="Picture").click()
    page.set_input_files("#file", {"name": "pan.png", "mimeType": "image/png", "buffer": png(3)})
    settle(page)
    page.fill("#new-title", "A pan that nobody has")
    page.get_by_role("button", name="Add to the catalogue").click()
    posted = page.locator("#picture .card[data-id='pan']")
    expect(posted.locator(".moves")).to_have_text("New")
    posted.locator(".open").click()
    page.locator("dialog .like").click()
    expect(page.locator("dialog .like")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    mine = shown(page)
    expect(page.locator("#history .thumb")).to_have_count(3)
    expect(page.locator("#history [data-id='pan']")).to_have_count(1)
    (first,) = runs_of(page)

    status, _, error = tesserec("roll", runs[1].root, "--store", store)
    assert status == 0, error
    (second,) = runs_of(page)
    assert second != first
    rolled = shown(page)
    assert rolled != mine  # by another ranker
    expect(page.locator("#history .thumb")).to_have_count(3)
    expect(page.locator("#history [data-id='pan']")).to_have_count(1)
    keep(page, "rolled")
    page.get_by_role("link", name="Search").click()
    page.fill("#text", "A pan that nobody has")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.locator("#search .card[data-id='pan']")).to_have_count(1)

    status, _, error = tesserec("roll", "--back", "--store", store)
    assert status == 0, error
    assert runs_of(page) == [first]
    assert shown(page) == mine
    expect(page.locator("#history [data-id='pan']")).to_have_count(1)
    expect(page.locator("#recommend .said")).to_have_text(re.compile(r"\d+ items"))
