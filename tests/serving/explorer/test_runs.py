"""Two runs side by side, through the page: who gets which, how often users act on the answers of each, and live."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from serving.runs.rates import Rate
from tests.serving.explorer.fake import RUN, Shop, served
from tests.serving.explorer.looking import PHONE, TALL, keep, needs_chromium, settle

pytestmark = needs_chromium
NEXT = "demo-77c0"


@pytest.fixture
def pair(shop: Shop) -> Iterator[Shop]:
    """The shop with two runs, the second of which users like better."""
    before = shop.runs
    shop.runs = [served(RUN, 0.9, 9_040, 705)]
    shop.runs.append(served(NEXT, 0.1, 1_012, 111, Rate(**shop.runs[0]["rate"])))
    yield shop
    shop.runs = before


@pytest.mark.parametrize(("name", "viewport", "scheme"), [("runs", TALL, "light"), ("runs-phone-dark", PHONE, "dark")])
def test_two_runs_stand_side_by_side(visit, pair, name, viewport, scheme) -> None:
    page = visit("#/quality", viewport=viewport, scheme=scheme)
    page.evaluate("fetch('v1/recommend', {method: 'POST', body: JSON.stringify({k: 1})})")
    settle(page)
    first, second = page.locator("#runs article").nth(0), page.locator("#runs article").nth(1)
    expect(first.locator("h3")).to_have_text(RUN)
    expect(first.locator(".chip")).to_have_text("90.0 % of the users, and visitors")
    expect(first.locator(".rate > p").first).to_have_text("7.8 % of the answers were acted on")
    expect(second.locator(".chip")).to_have_text("10.0 % of the users")
    expect(second.locator(".difference")).to_have_text(
        re.compile(r"^\+3\.2 points \(\+\d\.\d to \+\d\.\d\): more than the first run$")
    )
    expect(page.locator("#runs .said")).to_have_text(re.compile("2 of 2 replicas serve this"))
    bars = page.locator("#runs .interval").evaluate_all(
        "bars => bars.map(bar => Number(bar.style.getPropertyValue('--part')))"
    )
    assert bars[0] / bars[1] == pytest.approx((705 / 9_040) / (111 / 1_012), abs=0.01)
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide == 0
    page.locator("#runs").scroll_into_view_if_needed()
    keep(page, name)


def test_the_runs_are_asked_again_and_a_shadow_is_shown_as_one(visit, pair) -> None:
    page = visit("#/quality")
    page.clock.install()
    settle(page)
    expect(page.locator("#runs .difference")).to_be_visible()
    pair.runs[1] = served(NEXT, 0.0, 0, 0, shadow=True)
    page.clock.run_for(6000)
    second = page.locator("#runs article").nth(1)
    expect(second.locator(".chip")).to_have_text("in the shadow of the first")
    expect(second.locator(".hint")).to_have_text("Nobody sees its answers, so nobody acts on them.")
    pair.runs.pop()
    page.clock.run_for(6000)
    expect(page.locator("#runs article")).to_have_count(1)
    pair.runs[0] = served(RUN, 1.0, 0, 0)
    page.clock.run_for(6000)
    expect(page.locator("#runs .hint")).to_have_text("No user has had an answer yet.")
    expect(page.locator("#runs .chip")).to_have_text("everybody")


def test_who_may_only_read_sees_the_runs(visit, pair) -> None:
    pair.keys = {"reader": "read"}
    try:
        page = visit("#/quality")
        page.fill("#bearer", "reader")
        page.get_by_role("button", name="Use").click()
        expect(page.locator("#runs article")).to_have_count(2)
        expect(page.locator("#live .problem")).to_have_text(re.compile("for a key with the role admin"))
        expect(page.locator("#runs dt", has_text="p50")).to_have_count(0)
    finally:
        pair.keys = {}
