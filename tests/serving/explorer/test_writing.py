"""What a user likes and dislikes, through the page: events, the list that moves, erasure, and live counts."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.serving.explorer.looking import PHONE, TALL, cards, focused, keep, needs_chromium, settle, tab_to

pytestmark = needs_chromium


def said(shop, user: str) -> list[tuple[str, str, str | None]]:
    """The events of a user."""
    return [event for (who, _), event in shop.events.items() if who == user]


def known(page: Page, user: str) -> None:
    """Picks a user by id."""
    page.fill("#user", user)
    page.get_by_role("button", name="Show", exact=True).click()
    expect(cards(page)).to_have_count(12)
    settle(page)


def test_a_user_likes_the_list_moves_and_the_user_is_erased(visit, shop) -> None:
    page = visit()
    known(page, "anna")
    liked = cards(page).nth(2).get_attribute("data-id")
    cards(page).nth(2).locator(".like").dblclick()
    expect(page.locator(f"#history [data-id='{liked}']")).to_have_count(1)
    expect(page.locator("#recommend .moved")).to_have_text(re.compile(r"After the like: \d+ came, \d+ left"))
    expect(page.locator(f"#recommend .card[data-id='{liked}']")).to_have_count(0)
    expect(page.locator(".card .moves", has_text="New").first).to_be_visible()
    page.mouse.down(click_count=2)  # the second of a slow double click, where another item is now
    page.mouse.up(click_count=2)
    assert said(shop, "anna") == [(liked, "like", "01J9ZC7")]
    keep(page, "liked")

    disliked = cards(page).nth(1).get_attribute("data-id")
    cards(page).nth(1).locator(".dislike").click()
    expect(page.locator("#recommend .moved")).to_have_text(re.compile("After the dislike: "))
    expect(page.locator(f"#recommend .card[data-id='{disliked}']")).to_have_count(0)
    expect(page.locator(f"#less [data-id='{disliked}']")).to_have_count(1)
    page.locator(f"#less [data-id='{disliked}'] button").click()
    expect(page.locator("dialog .dislike")).to_have_attribute("aria-pressed", "true")
    page.locator("dialog .like").click()
    expect(page.locator("dialog .dislike")).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("Escape")
    expect(page.locator("#less")).to_be_hidden()
    expect(page.locator("#recommend .moved")).to_have_text(re.compile("After the like: "))
    assert [(item, kind) for item, kind, _ in said(shop, "anna")][1:] == [(disliked, "dislike"), (disliked, "like")]

    page.get_by_role("button", name="Erase this user").click()
    expect(page.get_by_role("heading", name="Erase anna?")).to_be_visible()
    keep(page, "erase")
    page.keyboard.press("Enter")  # on the button that keeps
    expect(page.locator("#erase")).to_be_hidden()
    assert said(shop, "anna")
    page.get_by_role("button", name="Erase this user").click()
    page.get_by_role("button", name="Erase", exact=True).click()
    expect(page.locator("#recommend .said")).to_contain_text("nothing is known of this user")
    expect(page.locator("#history .thumb")).to_have_count(0)
    assert said(shop, "anna") == []


def test_what_fails_is_sent_again_and_counts_once(visit, shop) -> None:
    page = visit("#/recommend?user=ben")
    expect(cards(page)).to_have_count(12)
    item = cards(page).first.get_attribute("data-id")
    sent: list[str] = []

    def lose(route) -> None:  # the first is kept, but its answer is lost
        sent.append(route.request.post_data_json["event_id"])
        if len(sent) == 1:
            route.fetch()
        route.abort()

    page.route("**/v1/events", lose)
    cards(page).first.locator(".like").click()
    line = page.locator("#unsent")
    expect(line).to_contain_text("1 event not kept yet. The service does not answer.")
    expect(cards(page).first.locator(".like")).to_have_text(re.compile("Try again"))
    keep(page, "unsent")
    with page.expect_event("requestfailed"):
        cards(page).first.locator(".like").click()
    expect(cards(page).first.locator(".like")).to_have_text(re.compile("Try again"))
    page.unroute("**/v1/events")
    line.get_by_role("button", name="Try again").click()
    expect(line).to_be_empty()
    expect(page.locator(f"#recommend .card[data-id='{item}']")).to_have_count(0)
    expect(page.locator(f"#history [data-id='{item}']")).to_have_count(1)
    assert len(set(sent)) == 1
    assert said(shop, "ben") == [(item, "like", "01J9ZC7")]


@pytest.mark.parametrize("role", ["read", "write", "admin"])
def test_a_key_shows_what_it_may(visit, shop, monkeypatch, role: str) -> None:
    monkeypatch.setattr(shop, "keys", {"sesame": role})
    page = visit()
    page.fill("#bearer", "sesame")
    page.keyboard.press("Enter")
    expect(page.locator("#key.given")).to_have_count(1)
    known(page, "dora")
    like = cards(page).first.locator(".like")
    like.focus()
    page.keyboard.press("Enter")
    if role == "read":
        expect(page.locator("#unsent")).to_contain_text("This key may only read, so that no like is kept.")
        expect(page.locator(".card :is(.like, .dislike)").locator("visible=true")).to_have_count(0)
        expect(page.locator(".card .less").first).to_be_visible()
        expect(page.locator("#history .thumb")).to_have_count(0)
        assert focused(page) == 0
        keep(page, "read-only")
    else:
        expect(page.locator("#history .thumb")).to_have_count(1)
    settle(page)
    expect(page.locator("#forget")).to_be_visible(visible=role == "admin")
    page.get_by_role("link", name="Quality").click()
    if role == "admin":
        expect(page.locator("#live tbody th", has_text="/v1/recommend")).to_have_count(1)
    else:
        expect(page.locator("#live .problem")).to_have_text(
            "What the service counts is shown for a key with the role admin."
        )
    expect(page.locator("#key form")).to_be_hidden()
    shop.forget("dora")


def test_likes_of_somebody_invented_stay_in_the_page(visit, shop) -> None:
    page = visit()
    expect(cards(page)).to_have_count(12)
    before = dict(shop.events)
    cards(page).nth(3).locator(".like").click()
    expect(page.locator("#history .thumb")).to_have_count(1)
    expect(page.locator("#recommend .moved")).to_have_text(re.compile("came|left|rose"))
    expect(page.locator("#forget")).to_be_hidden()
    expect(page.locator(".card .dislike").first).to_be_hidden()
    assert shop.events == before
    assert "likes=" in page.url


@pytest.mark.parametrize(("motion", "moves"), [("reduce", False), ("no-preference", True)])
def test_the_list_glides_unless_less_motion_is_wanted(visit, shop, motion: str, moves: bool) -> None:
    page = visit(f"#/recommend?user={motion}", motion=motion)
    expect(cards(page)).to_have_count(12)
    page.evaluate(
        "() => { const animate = Element.prototype.animate; window.moved = 0;"
        " Element.prototype.animate = function (...how) { window.moved++; return animate.apply(this, how); }; }"
    )
    cards(page).nth(1).locator(".like").click()
    expect(page.locator("#recommend .moved")).not_to_be_empty()
    assert (page.evaluate("window.moved") > 0) is moves


def test_events_by_keyboard_and_on_a_phone(visit, shop) -> None:
    page = visit("#/recommend?user=cleo", viewport=PHONE)
    expect(cards(page)).to_have_count(12)
    tab_to(page, ".card .dislike")
    item = cards(page).first.get_attribute("data-id")
    page.keyboard.press("Enter")
    expect(page.locator(f"#less [data-id='{item}']")).to_have_count(1)
    settle(page)
    assert focused(page) == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.locator(".card").first.scroll_into_view_if_needed()
    keep(page, "phone-disliked")
    page.locator("#forget").scroll_into_view_if_needed()
    page.locator("#forget").click()
    keep(page, "phone-erase")
    page.keyboard.press("Escape")
    assert said(shop, "cleo") == [(item, "dislike", "01J9ZC7")]


def test_live_counts_are_read_again_while_they_are_looked_at(visit, shop) -> None:
    page = visit("#/recommend?user=emil", viewport=TALL)
    expect(cards(page)).to_have_count(12)
    cards(page).first.locator(".like").click()
    expect(page.locator("#recommend .moved")).not_to_be_empty()
    page.clock.install()
    page.get_by_role("link", name="Quality").click()
    row = page.locator("#live tbody tr", has_text="/v1/recommend")
    expect(row.locator("[data-name=p99]")).to_have_text(re.compile(r"^\d+ ms$"))
    expect(page.get_by_text("like events", exact=True)).to_be_visible()
    number = int(row.locator("[data-name=requests] b").inner_text())
    keep(page, "live")
    page.evaluate("fetch('v1/recommend', {method: 'POST', body: JSON.stringify({k: 1})})")
    page.clock.run_for(6000)
    expect(row.locator("[data-name=requests] b")).to_have_text(str(number + 1))
    page.get_by_role("link", name="Search").click()
    asked: list[str] = []
    page.on("request", lambda request: request.url.endswith("/metrics") and asked.append(request.url))
    page.clock.run_for(20_000)
    assert asked == []


def test_quantiles_are_those_of_prometheus(visit, shop) -> None:
    page = visit("#/quality")
    asked = """async () => {
      const {quantile, read} = await import("./prometheus.js");
      const text = 'a_total{route="/v1/\\\\"x",le="+Inf"} 3.0\\n# HELP a b\\nb 1e+03\\n';
      const buckets = [[.1, 50], [.5, 90], [Infinity, 100]];
      const most = quantile(.99, buckets) === Infinity;
      return [quantile(.5, buckets), quantile(.7, buckets), most, quantile(.5, []), read(text)];
    }"""
    assert page.evaluate(asked) == [
        0.1,
        pytest.approx(0.3),
        True,
        None,
        [
            {"name": "a_total", "labels": {"route": '/v1/"x', "le": "+Inf"}, "value": 3},
            {"name": "b", "labels": {}, "value": 1000},
        ],
    ]
