"""The live page of the flash sale, in a real browser before the real shop."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from flash_sale.running.system import System
from flash_sale.services import database_of, deeds
from flash_sale.settings import Settings
from flash_sale.trial.audit import reader
from flash_sale.trial.crowd import Crowd, Customer
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Route, expect
from sqlalchemy import update

from distlock.testing.proxy import FaultProxy

from .browsers import beside, chromium
from .servers import require_redis

pytestmark = pytest.mark.timeout(900)  # a dozen processes start
SOON = 120_000
"""Milliseconds, on a machine that is busy with other tests."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        expect.set_options(timeout=SOON)
        yield browser


@pytest.fixture(scope="module")
def sale(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """The whole shop; no more of each process than the page is to show."""
    require_redis()
    folder = str(tmp_path_factory.mktemp("sale"))
    # Nothing that is to be looked at goes by itself: refunds fail for ever, and who asks waits for ever.
    settings = Settings(database="", redis="", services="", folder=folder, outages=10**6, patience=600)
    with System(settings, shop_workers=2, saga_workers=1, publishers=1) as sale:
        yield sale


@contextmanager
def opened(browser: Browser, url: str) -> Iterator[Page]:
    """The page; no error may have come to its console when the block is left."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    errors: list[str] = []

    def heed(message: ConsoleMessage) -> None:
        # Of a refused request the browser itself writes a line, whatever the page makes of it.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            errors.append(message.text)

    page.set_default_timeout(SOON)
    page.on("console", heed)
    page.on("pageerror", lambda error: errors.append(str(error)))
    try:
        page.goto(url)
        expect(page.get_by_test_id("link")).to_have_text("● live")
        yield page
    finally:
        page.close()
    assert not errors


@pytest.fixture
def page(browser: Browser, sale: System) -> Iterator[Page]:
    with opened(browser, sale.url) as page:
        yield page


def order_of(page: Page, customer: str) -> Locator:
    """What the page says of the orders of a customer."""
    return page.get_by_test_id("order").filter(has=page.get_by_text(customer, exact=True))


def number(page: Page, test_id: str) -> int:
    return int(page.get_by_test_id(test_id).inner_text())


def cell(row: Locator, name: str) -> Locator:
    return row.locator(f'[data-name="{name}"]')


def let_refunds_work(sale: System) -> None:
    """As if they had been asked for a million times."""
    with reader(database_of(sale.settings)) as engine, engine.begin() as connection:
        connection.execute(update(deeds).values(asked=sale.settings.outages + 1))


def test_a_sale_is_shown_as_it_runs(page: Page, sale: System) -> None:
    """What is left, how the orders stand and who holds which lock; what customers are called is text, and no more."""
    stock, before = number(page, "stock"), number(page, "available")
    assert before + number(page, "reserved") + number(page, "sold") == stock
    injection = """<img src=x onerror="document.title='injected'">"""
    slow, plain = Customer("Sloane", 0, "slow"), Customer(injection, 0)
    lost = [Customer("Declan", 0, "declined"), Customer("Nora", 0, "refund-fails", "nowhere")]
    (services,) = sale.pids("services")
    sale.kill(services, signal.SIGSTOP)  # so that the orders are held
    beside(Crowd(sale.url, [slow, plain, *lost]).buy)

    expect(page.get_by_test_id("available")).not_to_have_text(str(before))
    locks = page.get_by_test_id("lock")
    for key in ("order:", "publisher"):
        expect(cell(locks.filter(has_text=key).first, "token")).to_have_text(re.compile(r"^\d{16}$"))
        expect(cell(locks.filter(has_text=key).first, "expires")).to_have_text(re.compile(r"^\d+\.\d s$"))
    sale.kill(services, signal.SIGCONT)

    stuck = page.get_by_test_id("stuck")
    expect(stuck).to_contain_text(re.compile(r"undoing pay failed \d+ times, next try in \d+\.\d s"))
    expect(stuck).to_be_visible()
    let_refunds_work(sale)
    expect(order_of(page, "Nora")).to_contain_text("↩ compensated")
    expect(stuck).to_be_hidden()

    for customer in (slow, plain):
        expect(order_of(page, customer.name)).to_contain_text("✓ completed")
    assert page.title() == "Flash sale"
    expect(page.locator("img")).to_have_count(0)

    declined = order_of(page, "Declan")
    expect(declined).to_contain_text("↩ compensated")
    expect(cell(declined, "reserve")).to_have_text("↩ undone")
    expect(cell(declined, "pay")).to_contain_text("✗ refused")
    expect(cell(declined, "pay").locator(".chip")).to_have_attribute("title", re.compile("declined"))
    expect(declined.locator(".errors")).to_contain_text("declined")

    expect(page.get_by_test_id("available")).to_have_text(str(before - 2))
    expect(page.get_by_test_id("outbox-waiting")).to_have_text("0")
    expect(page.get_by_test_id("feed-sold")).to_have_text(page.get_by_test_id("sold").inner_text())

    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360, "a phone has to scroll sideways"


def test_what_is_sent_again_is_one_order(page: Page) -> None:
    """By a second click, after a lost reply and after a 503; who wants another order says so."""
    answers = page.get_by_test_id("answers").locator("li")
    placed = re.compile(r"Order (\S+) is placed")

    def orders() -> list[str]:
        return [placed.findall(text)[0] for text in answers.all_inner_texts()]

    page.get_by_label("Your name").fill("Ada")
    page.get_by_test_id("buy-now").dblclick()
    expect(answers).to_have_text([placed, placed])
    expect(answers.filter(has_text="replayed")).not_to_have_count(0)
    assert len(set(orders())) == 1
    expect(order_of(page, "Ada")).to_have_count(1)
    expect(order_of(page, "Ada")).to_have_class("yours")

    page.get_by_test_id("new-purchase").click()
    reserving: list[str | None] = []
    paying: list[str | None] = []

    def lose_the_reply(route: Route) -> None:
        reserving.append(route.request.headers.get("idempotency-key"))
        if len(reserving) > 1:
            route.continue_()
        else:
            route.fetch()
            route.abort()

    def break_down(route: Route) -> None:
        paying.append(route.request.headers.get("idempotency-key"))
        if len(paying) > 1:
            route.continue_()
        else:
            route.fulfill(status=503, headers={"Retry-After": "1"})

    page.route("**/reservations", lose_the_reply)
    page.route("**/checkout", break_down)
    page.get_by_test_id("buy-now").click()
    expect(answers).to_have_text([placed])
    expect(answers).to_contain_text(re.compile(r"after \d+ tries"))
    for keys in (reserving, paying):  # twice or, if the shop was slow, more often
        assert len(keys) > 1
        assert len(set(keys)) == 1
    assert reserving[0] != paying[0]
    expect(order_of(page, "Ada")).to_have_count(2)


def test_what_goes_wrong_is_said(browser: Browser, sale: System) -> None:
    """No news, no store of the locks, and a no to who would buy."""
    shop = urlsplit(sale.url)
    with FaultProxy((str(shop.hostname), int(shop.port or 0))) as proxy:
        through = "http://{}:{}".format(*proxy.address)
        with opened(browser, through) as page:
            proxy.pause()
            expect(page.get_by_test_id("link")).to_have_text("✗ no news")
            expect(page.get_by_test_id("silence")).to_have_text(re.compile(r"for \d+ s"))
            # An answer that is an error, too, after which browsers do not connect again by themselves.
            page.route("**/live", lambda route: route.fulfill(status=503), times=1)
            proxy.reset_all()
            proxy.resume()
            expect(page.get_by_test_id("link")).to_have_text("● live")
            expect(page.get_by_test_id("silence")).to_be_empty()

            (redis,) = sale.pids("redis")
            sale.kill(redis, signal.SIGSTOP)
            expect(page.get_by_test_id("trouble")).to_be_visible()
            unknown = re.compile("Nobody knows")
            expect(page.get_by_role("table", name="Who holds which lock")).to_have_attribute("data-none", unknown)
            sale.kill(redis, signal.SIGCONT)
            expect(page.get_by_test_id("trouble")).to_be_hidden()

            page.get_by_label("Your name").fill("Greta")
            page.get_by_label("Pieces").fill("99")
            page.get_by_test_id("buy-now").click()
            expect(page.get_by_test_id("answers")).to_have_text(re.compile("✗ 409: (limit|sold out)"))
