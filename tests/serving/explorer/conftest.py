"""The page over forty drawn items, in Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.served import listening
from tests.serving.explorer.fake import Shop, api
from tests.serving.explorer.looking import CHROMIUM, TALL, Open

ASKED = re.compile(r"/v1/|/metrics$")


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop()


@pytest.fixture(scope="module")
def address(shop) -> Iterator[str]:
    with listening(api(shop)) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM)


@pytest.fixture
def visit(browser, address) -> Iterator[Open]:
    """Opens the page; at the end nothing has gone wrong in it, and nothing was asked of another host."""
    wrong: list[str] = []
    contexts = []

    def opened(
        path: str = "", *, viewport: dict[str, int] = TALL, scheme: str = "light", motion: str = "reduce"
    ) -> Page:
        contexts.append(browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion=motion))
        page = contexts[-1].new_page()
        page.set_default_timeout(5000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        # A picture or an answer that is missing is logged by the browser itself.
        page.on(
            "console",
            lambda message: (
                message.type in ("error", "warning")
                and not (message.text.startswith("Failed to load resource") and ASKED.search(message.location["url"]))
                and wrong.append(message.text)
            ),
        )
        page.on("request", lambda sent: sent.url.startswith((address, "blob:")) or wrong.append(sent.url))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.goto(f"{address}/{path}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []
