"""New items through the page: posted from a picture, found at once, and hidden."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.serving.explorer.looking import PHONE, TALL, cards, keep, needs_chromium, settle

pytestmark = needs_chromium


def drop(page: Page, shop, item_id: str, name: str) -> None:
    """Gives the page the picture of an item."""
    page.set_input_files("#file", {"name": name, "mimeType": "image/jpeg", "buffer": shop.pictures[item_id]})
    expect(cards(page)).to_have_count(12)
    settle(page)


@pytest.mark.parametrize("viewport", [TALL, PHONE], ids=["desk", "phone"])
def test_an_item_is_posted_from_a_picture_and_hidden(visit, shop, viewport) -> None:
    new, where = f"mug {viewport['width']}", "phone" if viewport == PHONE else "desk"
    page = visit("#/picture", viewport=viewport)
    expect(page.locator("#post")).to_be_hidden()
    drop(page, shop, "p-04", f"{new}.jpg")
    expect(page.locator("#new-id")).to_have_value(new)
    page.fill("#new-title", "A mug that nobody has")
    page.locator("#post").scroll_into_view_if_needed()
    keep(page, f"post-{where}")
    page.get_by_role("button", name="Add to the catalogue").click()
    card = page.locator(f"#picture .card[data-id='{new}']")
    expect(card.locator(".moves")).to_have_text("New")
    expect(card.locator(".open .name")).to_have_text("A mug that nobody has")
    expect(card.locator(".open")).to_be_focused()
    expect(page.locator("#picture .said")).to_have_text(f"{new} is in the catalogue. 12 items, nearest first.")
    expect(page.locator("#post")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    keep(page, f"posted-{where}")

    page.keyboard.press("Enter")
    page.get_by_role("button", name="Hide", exact=True).click()
    expect(page.locator("dialog .id .chip")).to_have_text("hidden")
    expect(page.get_by_role("button", name="Show again")).to_be_focused()
    keep(page, f"hidden-{where}")
    page.keyboard.press("Escape")
    drop(page, shop, "p-04", "again.jpg")
    expect(card).to_have_count(0)
    shop.items[new]["hidden"] = False


def test_what_is_wrong_with_a_new_item_is_told_beside_it(visit, shop, monkeypatch) -> None:
    page = visit("#/picture")
    drop(page, shop, "p-04", "p-05.jpg")
    page.get_by_role("button", name="Add to the catalogue").click()
    expect(page.locator("#post .problem")).to_contain_text("There is an item 'p-05' already: choose another item_id.")
    keep(page, "post-taken")
    drop(page, shop, "p-04", "free.jpg")
    expect(page.locator("#post .problem")).to_be_empty()
    monkeypatch.setattr(shop, "keys", {"sesame": "read"})
    page.evaluate("sessionStorage.setItem('tesserec-key', 'sesame')")
    page.get_by_role("button", name="Add to the catalogue").click()
    expect(page.locator("#post .problem")).to_contain_text("needs a key with the role write")
    cards(page).first.locator(".open").click()
    page.get_by_role("button", name="Hide", exact=True).click()
    expect(page.locator("dialog[open] .problem")).to_contain_text("needs a key with the role write")
