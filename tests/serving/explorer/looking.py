"""What tests of the page do with it; its pictures are kept in .artifacts/explorer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

CHROMIUM = shutil.which("chromium")
ARTIFACTS = Path(__file__).parents[3] / ".artifacts" / "explorer"
TALL = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}
Open = Callable[..., Page]

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


def keep(page: Page, name: str) -> None:
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}.png")


def cards(page: Page) -> Locator:
    return page.locator(".view:not([hidden]) .card")


def tab_to(page: Page, selector: str) -> None:
    """Presses Tab until the focus is on such an element; each that has it on the way shows it."""
    for _ in range(60):
        page.keyboard.press("Tab")
        shown = page.evaluate(
            """() => document.activeElement === document.body // between the last element and the first
                 || [document.activeElement, document.activeElement.closest(".card, label")]
                 .some(at => at && getComputedStyle(at).outlineStyle !== "none")"""
        )
        assert shown, page.evaluate("document.activeElement.outerHTML.slice(0, 200)")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"no Tab leads to {selector}")


def settle(page: Page) -> None:
    """Waits for the answers that are on their way."""
    expect(page.locator("[aria-busy]")).to_have_count(0)


def focused(page: Page) -> int:
    """The place of the card that has the focus."""
    script = (
        "[...document.querySelectorAll('.view:not([hidden]) .card')].findIndex(c => c.contains(document.activeElement))"
    )
    return page.evaluate(script)
