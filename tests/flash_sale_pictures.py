"""Photographs the flash sale's page for the docs: ``PYTHONPATH=docs/tutorials python -m tests.flash_sale_pictures``."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from flash_sale.running.system import System
from flash_sale.settings import Settings
from flash_sale.trial.crowd import Crowd, Customer
from PIL import Image
from playwright.sync_api import Page, expect

from .browsers import beside, chromium

IMAGES = Path(__file__).parent.parent / "docs" / "images"
FIRST = ("Ada", "Ben", "Cleo", "Dev", "Elif", "Finn", "Gia", "Hugo", "Ines", "Jan", "Kaya", "Liam")
ODD = (
    *[("slow", "home")] * 4,
    *[("declined", "home"), ("ok", "home"), ("refund-fails", "nowhere"), ("lost-reply", "home")] * 2,
    *[("ok", "nowhere"), ("slow", "home"), ("ok", "home")] * 2,
)
"""Cards and addresses of those that the picture in the middle is taken of."""
LONG = 60_000
"""Milliseconds for all orders to come to their end."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        settings = Settings(database="", redis="", services="", folder=folder, reservation=10, outages=6, slow=6)
        with System(settings) as sale:
            page = browser.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
            page.goto(sale.url)
            photograph_sale(page, sale.url)


def photograph_sale(page: Page, url: str) -> None:
    names = (f"{first} {initial}." for initial, first in product("ABCDEFGHIJKL", FIRST))

    def buy(count: int, card: str = "ok", pays: bool = True) -> None:
        beside(Crowd(url, [Customer(next(names), 0, card, pays=pays) for _ in range(count)]).buy)

    buy(9)
    buy(3, "slow")
    buy(4, pays=False)
    expect(page.get_by_test_id("lock").filter(has_text="order:")).to_have_count(3)
    expect(page.get_by_test_id("completed")).to_have_text("9")
    expect(page.get_by_test_id("reserved")).to_have_text("4")
    photograph(page, "early")

    buy(36)
    expect(page.get_by_test_id("completed")).to_have_text("48", timeout=LONG)
    beside(Crowd(url, [Customer(next(names), 0, *how) for how in ODD]).buy)
    expect(page.get_by_test_id("stuck")).to_contain_text("failed 4 times", timeout=LONG)
    photograph(page, "middle")

    for left in what_is_left(page):
        buy(left)
    page.get_by_label("Your name").fill("Zoe")
    page.get_by_test_id("buy-now").click()
    expect(page.get_by_test_id("answers")).to_contain_text("sold out")
    page.evaluate("scrollTo(0, 0)")
    photograph(page, "end")


def what_is_left(page: Page) -> Iterator[int]:
    """How many pieces nobody has, each time that all orders have come to their end, until there are none."""
    while True:
        for state in ("placed", "compensating", "outbox-waiting", "reserved"):
            expect(page.get_by_test_id(state)).to_have_text("0", timeout=LONG)
        left = page.get_by_test_id("available").inner_text()
        if left == "0":
            return
        yield int(left)
        expect(page.get_by_test_id("available")).not_to_have_text(left)


def photograph(page: Page, when: str) -> None:
    """In as many colours as it needs, which makes a small file."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(IMAGES / f"flash-sale-{when}.png", optimize=True)


if __name__ == "__main__":
    main()
