"""The explorer in Chromium over a service of forty items."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.serving.explorer.fake import BROKEN, HOSTILE, HOSTILE_ID, NO_PICTURE
from tests.serving.explorer.looking import PHONE, cards, focused, keep, needs_chromium, settle, tab_to

VIEWS = ("recommend", "catalogue", "search", "picture", "quality")

pytestmark = needs_chromium


def test_the_story_by_mouse(visit, shop) -> None:
    page = visit()
    expect(page.locator("#recommend .said")).to_have_text("12 items that are popular.")

    page.fill("#pick", "shirt")
    page.locator("#picks button").first.click()
    expect(page.locator("#history .thumb")).to_have_count(1)
    expect(page.locator("#recommend .said")).to_have_text("12 items from what they liked.")
    expect(cards(page).first.locator(".why")).to_contain_text("near")
    alike = page.locator("#recommend .card:has(.why .tile)").first
    assert alike.locator(".facts .tile.shared").count() == alike.locator(".why .tile").count()

    disliked = cards(page).nth(1).get_attribute("data-id")
    cards(page).nth(1).get_by_role("button", name="Less like").click()
    expect(page.locator("#less .thumb")).to_have_count(1)
    expect(page.locator(f"#recommend .card[data-id='{disliked}']")).to_have_count(0)
    page.get_by_role("button", name="Show more").click()
    expect(cards(page)).to_have_count(24)
    page.locator("#only label", has_text="sasrec").click()
    expect(cards(page)).to_have_count(12)
    assert all("sasrec" in text for text in page.locator("#recommend .card .by").all_inner_texts())
    page.reload()
    expect(page.locator("#history .thumb")).to_have_count(1)
    expect(page.locator("#less .thumb")).to_have_count(1)
    keep(page, "recommend")

    cards(page).first.locator(".open").click()
    expect(page.locator("dialog .mosaic .thumb")).to_have_count(8)
    keep(page, "item")
    page.locator("dialog .to-tree").click()
    expect(page.locator(".path .tile")).to_have_count(3)
    expect(page.locator(".column")).to_have_count(3)
    page.locator(".column").first.locator(".code").first.click()
    expect(page.locator(".column")).to_have_count(2)
    expect(page.locator("#catalogue .mosaic .thumb").first).to_be_visible()
    keep(page, "catalogue")

    page.get_by_role("link", name="Search").click()
    page.fill("#text", "blue mug")
    expect(page.locator("#search .said")).to_contain_text("best first")
    page.get_by_role("link", name="Picture").click()
    page.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": shop.pictures["p-04"]})
    expect(cards(page)).to_have_count(12)
    expect(cards(page).first).to_have_attribute("data-id", "p-04")
    expect(page.locator(".read .caption")).to_have_text(shop.items["p-04"]["caption"])
    expect(page.locator(".read .tile")).to_have_count(3)
    keep(page, "picture")

    page.get_by_role("link", name="Quality").click()
    first = page.locator("#quality > .table tbody th").first
    expect(first).to_have_text("language_model+sasrec")
    page.get_by_role("button", name="coverage@10").click()
    expect(first).to_have_text("content")
    keep(page, "quality")


def test_the_story_by_keyboard_alone(visit, shop) -> None:
    page = visit()
    press = page.keyboard.press
    tab_to(page, ".skip")
    tab_to(page, "#user")
    page.keyboard.type("anna")
    press("Enter")
    expect(page.locator("#recommend .said")).to_have_text("12 items from what they liked.")
    tab_to(page, "#pick")
    page.keyboard.type("mug")
    expect(page.locator("#picks button").first).to_be_visible()
    press("ArrowDown")
    press("ArrowDown")
    press("Enter")
    expect(page.locator("#history h2")).to_have_text("Liked, oldest first")
    settle(page)

    tab_to(page, ".card .open")
    assert focused(page) == 0
    press("ArrowRight")
    assert focused(page) == 1
    press("ArrowDown")
    below = focused(page)
    assert below > 2
    press("End")
    assert focused(page) == 11
    press("Home")
    press("ArrowRight")
    press("Enter")
    expect(page.locator("#item h2")).to_be_visible()
    press("Escape")
    assert focused(page) == 1
    tab_to(page, ".like")
    assert focused(page) == 1
    press("Enter")
    expect(page.locator("#history .thumb")).to_have_count(2)
    settle(page)
    assert focused(page) == 1
    tab_to(page, ".card [aria-label^='Less like']")
    press("Space")
    expect(page.locator("#less .thumb")).to_have_count(1)
    settle(page)
    tab_to(page, ".more")
    press("Enter")
    expect(cards(page)).to_have_count(24)
    assert focused(page) == 12

    tab_to(page, "header nav a[href='#/catalogue']")
    press("Enter")
    tab_to(page, ".code")
    press("ArrowDown")
    press("ArrowRight")
    expect(page.locator(".column")).to_have_count(2)
    expect(page.locator(".column").nth(1).locator(".code").first).to_be_focused()
    press("ArrowLeft")
    expect(page.locator(".column").first.locator(".code").nth(1)).to_be_focused()

    tab_to(page, "header nav a[href='#/search']")
    press("Enter")
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.type("blue")
    expect(cards(page).first).to_be_visible()
    tab_to(page, "header nav a[href='#/picture']")
    press("Enter")
    tab_to(page, ".drop")
    page.evaluate(CHOOSING)
    press("Enter")
    assert page.evaluate("window.mayChoose") is True
    page.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": shop.pictures["p-04"]})
    expect(cards(page)).to_have_count(12)
    tab_to(page, "header nav a[href='#/quality']")
    press("Enter")
    expect(page.locator("#quality > .table tbody tr")).to_have_count(5)
    tab_to(page, "thead button[data-name='recall@10']")
    press("Enter")
    expect(page.locator("th[aria-sort]")).to_have_text("recall@10")
    expect(page.locator("thead button[data-name='recall@10']")).to_be_focused()


def test_the_skip_link_leads_to_the_results(visit) -> None:
    page = visit()
    expect(cards(page)).to_have_count(12)
    tab_to(page, ".skip")
    page.keyboard.press("Enter")
    assert focused(page) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_down_only_and_texts_are_legible(visit, shop, scheme: str) -> None:
    page = visit("#/recommend?likes=p-00&less=p-05", viewport=PHONE, scheme=scheme)
    for view in VIEWS:
        page.evaluate("view => { if (!location.hash.startsWith('#/' + view)) location.hash = '#/' + view; }", view)
        if view == "search":
            page.fill("#text", "blue")
        if view == "picture":
            page.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": shop.pictures["p-04"]})
        expect(page.locator(f"#{view} :is(.card, .code, td)").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], view
        keep(page, f"phone-{view}-{scheme}")
        poor = page.evaluate(CONTRAST)
        assert not poor, (view, poor)


# Notes that the browser would open its dialog now: it does where the click comes of what a person has just done.
CHOOSING = """() => document.getElementById("file").addEventListener("click", event => {
  event.preventDefault();
  window.mayChoose = navigator.userActivation.isActive;
})"""

# Texts whose contrast with what is behind them is under 4.5, with the ratio; the canvas makes RGB of any colour.
CONTRAST = """() => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1});
  const pen = canvas.getContext("2d", {willReadFrequently: true});
  const rgba = colour => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const linear = v => (v <= 10 ? v / 3294.6 : ((v / 255 + .055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const behind = at => {
    for (; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] > 200) return colour;
    }
    return [255, 255, 255];
  };
  const poor = {};
  for (const at of document.querySelectorAll("body *")) {
    if (!at.checkVisibility() || ![...at.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
    const [high, low] = [light(rgba(getComputedStyle(at).color)), light(behind(at))].sort((a, b) => b - a);
    const ratio = (high + .05) / (low + .05);
    if (ratio < 4.5) poor[`${at.tagName}.${at.className}`] = ratio;
  }
  return Object.keys(poor).length ? poor : null;
}"""


def test_a_hostile_title_stays_text(visit) -> None:
    page = visit("#/search?text=onerror")
    expect(cards(page)).to_have_count(1)
    expect(cards(page).locator(".open .name")).to_have_text(HOSTILE)
    cards(page).locator(".like").click()
    cards(page).locator(".open").click()
    expect(page.locator("#item h2")).to_have_text(HOSTILE)
    expect(page.locator("dialog .id")).to_have_text(HOSTILE_ID)
    keep(page, "hostile")
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Recommend").click()
    expect(page.locator("#history .thumb")).to_have_attribute("aria-label", f"Like {HOSTILE} no more")
    expect(page.locator(".why .name").first).to_have_text(HOSTILE)
    expect(page.locator("img[src=x], main script")).to_have_count(0)
    expect(page).to_have_title("Recommend · tesserec")


def test_what_the_service_refuses_stands_in_a_line(visit) -> None:
    page = visit()
    page.fill("#user", BROKEN)
    page.get_by_role("button", name="Show", exact=True).click()
    line = page.locator("#recommend .answer .problem")
    expect(line).to_have_text("The service has too much to do: try again in a second. request req-7f3a")
    expect(cards(page)).to_have_count(0)
    keep(page, "problem")
    page.fill("#user", "anna")
    page.keyboard.press("Enter")
    expect(line).to_be_empty()
    expect(cards(page)).to_have_count(12)

    page.route("**/v1/search*", lambda route: route.abort())
    page.fill("#pick", "mug")
    expect(page.locator("#invent .problem")).to_have_text("The service does not answer.")
    page.unroute("**/v1/search*")
    page.goto(f"{page.url.split('#')[0]}#/search?text={BROKEN}")
    expect(page.locator("#search .problem")).to_contain_text("at most 200 letters")
    page.get_by_role("link", name="Picture").click()
    page.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"no picture"})
    expect(page.locator("#picture .answer .problem")).to_have_text("This file is no picture that the browser can read.")


def test_items_without_a_picture_or_a_place_are_told(visit) -> None:
    page = visit(f"#/recommend?likes={NO_PICTURE}&likes=gone")
    expect(page.locator("#recommend .said")).to_contain_text("The catalogue does not have gone.")
    tile = page.locator("#history .picture").first
    expect(tile).to_have_text(re.compile(r"^\w$"))
    expect(tile.locator("img")).to_have_count(0)
    page.goto(f"{page.url.split('#')[0]}#/catalogue?prefix=3,9999")
    expect(page.locator("#catalogue .said")).to_have_text("No item has this ID.")


def test_a_key_is_asked_for_and_sent_with_each_call(visit, shop, monkeypatch) -> None:
    monkeypatch.setattr(shop, "keys", {"open-sesame": "read"})
    page = visit()
    line = page.locator("#recommend .answer .problem")
    expect(line).to_have_text("This needs a key. Give a key of the service, under “Key”. request req-7f3a")
    expect(page.locator("#bearer")).to_be_focused()
    keep(page, "key")
    page.keyboard.type("idle")
    page.keyboard.press("Enter")
    expect(page.locator("#key.given")).to_have_count(1)
    expect(line).to_contain_text("This needs a key.")
    page.fill("#bearer", "open-sesame")
    page.keyboard.press("Enter")
    expect(cards(page)).to_have_count(12)
    expect(page.locator("#key.given")).to_have_count(1)
    expect(page.locator("#key form")).to_be_hidden()
    page.wait_for_function("document.querySelector('.card img')?.naturalWidth > 0")  # pictures need it, too
    assert "sesame" not in page.url
    assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 1]
    page.locator("#key summary").click()
    page.locator("#key button").click()
    expect(line).to_contain_text("This needs a key.")


def test_items_are_filtered_by_attributes(visit, shop) -> None:
    page = visit("#/recommend?likes=p-00")
    expect(cards(page)).to_have_count(12)
    page.locator("#recommend .where summary", has_text="brand").click()
    page.locator("#recommend .where label", has_text="Hollis").click()
    page.locator("#recommend .where label", has_text="Alder").click()
    expect(page.locator("#recommend .where summary", has_text="brand").locator("b")).to_have_text("2")
    settle(page)
    brands = {shop.items[card.get_attribute("data-id")]["attributes"]["brand"][0] for card in cards(page).all()}
    assert brands == {"Hollis", "Alder"}
    keep(page, "filters")
    page.reload()
    expect(page.locator("#recommend .where :checked")).to_have_count(2)
    page.goto(f"{page.url.split('#')[0]}#/search?text=surface")
    expect(cards(page).first).to_be_visible()
    expect(cards(page)).to_have_count(24)
    page.locator("#search .where summary", has_text="brand").click()
    page.locator("#search .where label", has_text="Hollis").click()
    expect(cards(page)).to_have_count(10)
    assert {shop.items[card.get_attribute("data-id")]["attributes"]["brand"][0] for card in cards(page).all()} == {
        "Hollis"
    }
    keep(page, "search-filters")


def test_the_bar_is_the_score_and_the_probability_stands_beside_it(visit) -> None:
    page = visit("#/recommend?likes=p-00")
    expect(cards(page)).to_have_count(12)
    page.get_by_role("button", name="Show more").click()
    expect(cards(page)).to_have_count(24)
    parts = page.evaluate(
        "[...document.querySelectorAll('.card .bar')].map(bar => Number(bar.style.getPropertyValue('--part')))"
    )
    scores = [float(text) for text in page.locator(".card .score b").all_inner_texts()]
    assert parts == sorted(parts, reverse=True)
    assert parts[0] == 1.0
    assert parts == pytest.approx([score / scores[0] for score in scores], abs=0.02)
    expect(page.locator(".card .score").first).to_contain_text(re.compile(r"p 0\.\d\d$"))
    page.goto(f"{page.url.split('#')[0]}#/recommend?user=nobody")
    expect(page.locator(".card .score .soft")).to_have_count(0)
