"""Photographs the flash sale's page for the docs: ``PYTHONPATH=docs/tutorials python -m tests.flash_sale_pictures``."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path

from flash_sale.settings import Settings
from flash_sale.system import System
from PIL import Image
from playwright.sync_api import Page, expect

from .browsers import chromium
from .flash_sale_crowd import Customer, buy

IMAGES = Path(__file__).parent.parent / "docs" / "images"
FIRST = ("Ada", "Ben", "Cleo", "Dev", "Elif", "Finn", "Gia", "Hugo", "Ines", "Jan", "Kaya", "Liam")
ODD = (
    *[("slow", "home")] * 4,
    *[("declined", "home"), ("ok", "home"), ("refund-fails", "nowhere"), ("lost-reply", "home")] * 2,
    *[("ok", "nowhere"), ("slow", "home"), ("ok", "home")] * 2,
)
"""Cards and addresses of those that the picture in the middle is taken of."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        settings = Settings(database="", redis="", services="", folder=folder, reservation=10, outages=6, slow=6)
        with System(settings) as sale:
            page = browser.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
            page.goto(sale.url)
            photograph_sale(page, sale.url)


def photograph_sale(page: Page, url: str) -> None:
    names = (f"{first} {initial}." for initial, first in product("ABCDEFGHIJKL", FIRST))
    orders_held = page.get_by_test_id("lock").filter(has_text="order:")

    buy(url, *(Customer(name) for name in islice(names, 9)), *(Customer(name, "slow") for name in islice(names, 3)))
    buy(url, *(Customer(name, None) for name in islice(names, 4)))
    expect(orders_held).to_have_count(3)
    expect(page.get_by_test_id("completed")).to_have_text("9")
    expect(page.get_by_test_id("reserved")).to_have_text("4")
    photograph(page, "early")

    buy(url, *(Customer(name) for name in islice(names, 36)))
    expect(page.get_by_test_id("completed")).to_have_text("48", timeout=60_000)
    buy(url, *(Customer(name, *how) for name, how in zip(islice(names, len(ODD)), ODD, strict=True)))
    expect(page.get_by_test_id("stuck")).to_contain_text("failed 4 times", timeout=60_000)
    photograph(page, "middle")

    for left in what_is_left(page):
        buy(url, *(Customer(name) for name in islice(names, left)))
    page.get_by_label("Your name").fill("Zoe")
    page.get_by_test_id("buy-now").click()
    expect(page.get_by_test_id("answers")).to_contain_text("sold out")
    page.evaluate("scrollTo(0, 0)")
    photograph(page, "end")


def what_is_left(page: Page) -> Iterator[int]:
    """How many pieces nobody has, each time that all orders have come to their end, until there are none."""
    while True:
        for state in ("placed", "compensating", "outbox-waiting", "reserved"):
            expect(page.get_by_test_id(state)).to_have_text("0", timeout=60_000)
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
