"""The admin as a person uses it: a real browser, on a real server.

``ADMIN_PICTURE=docs/images/admin.png pytest tests/acceptance/test_browser.py`` renews the README's
picture.
"""

from __future__ import annotations

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from playwright.sync_api import Page, expect, sync_playwright

from outbox.models import OutboxMessage
from tests.acceptance import shop_messages
from tests.servers.missing import missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_django.live_server_helper import LiveServer

pytestmark = pytest.mark.django_db(transaction=True)

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
FOLD_THE_SIDEBAR = 'localStorage.setItem("django.admin.navSidebarIsOpen", "false")'


@pytest.fixture
def browse(tmp_path: Path, live_server: LiveServer) -> Iterator[Callable[..., None]]:
    """Run a function on a page of the browser, in the browser's own thread.

    In the test's thread, playwright's loop would have Django refuse every query.
    """
    program = shutil.which("chromium")
    if program is None:
        missing("Chromium is missing: apt-get install chromium")

    def open_browser() -> Page:
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "profile",
            executable_path=program,
            args=FLAGS,
            base_url=live_server.url,
            viewport={"width": 1360, "height": 900},
        )
        page = context.pages[0]
        page.add_init_script(FOLD_THE_SIDEBAR)
        page.set_default_timeout(20_000)
        return page

    with ThreadPoolExecutor(1) as thread:
        playwright = thread.submit(sync_playwright().start).result()
        try:
            page = thread.submit(open_browser).result()
            yield lambda function: thread.submit(function, page).result()
            thread.submit(page.context.close).result()
        finally:
            thread.submit(playwright.stop).result()


@pytest.fixture
def logged_in(browse: Callable[..., None]) -> Callable[..., None]:
    """``browse``, as a superuser who sees the shop's messages."""
    User.objects.create_superuser("admin", password="tea time")
    shop_messages.fill()

    def log_in(page: Page) -> None:
        page.goto("/admin/")
        page.get_by_label("Username").fill("admin")
        page.get_by_label("Password").fill("tea time")
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("link", name="Outbox messages").first.click()
        expect(page.get_by_text("48 outbox messages")).to_be_visible()

    browse(log_in)
    return browse


def test_a_person_finds_a_dead_message_and_retries_it(logged_in: Callable[..., None]) -> None:
    def retry(page: Page) -> None:
        page.get_by_role("link", name="dead", exact=True).click()
        expect(page.locator("#result_list tbody tr")).to_have_count(2)
        page.get_by_role("link", name="charge:1038").click()
        expect(page.locator(".field-arguments")).to_contain_text("Decimal('7.90')")
        expect(page.locator(".field-error_table tbody tr")).to_have_count(10)
        expect(page.locator(".field-error_table")).to_contain_text("could not route it")
        page.get_by_text("On the wire").click()
        expect(page.locator(".field-header_json")).to_contain_text('"lang": "py"')
        page.get_by_role("button", name="Retry").click()
        expect(page.get_by_text("1 message is pending again.")).to_be_visible()
        expect(page.locator(".field-state")).to_contain_text("pending")
        expect(page.get_by_role("button", name="Retry")).to_have_count(0)
        page.get_by_role("link", name="History").click()
        expect(page.get_by_text("Retried; it was dead.")).to_be_visible()

    logged_in(retry)
    message = OutboxMessage.objects.get(key="charge:1038")
    assert message.status == "pending"
    assert message.attempts == 0


def test_a_person_discards_several_after_being_asked(logged_in: Callable[..., None]) -> None:
    def discard(page: Page) -> None:
        page.locator("#searchbar").fill("book_payment")
        page.get_by_role("button", name="Search").click()
        expect(page.locator("#result_list tbody tr")).to_have_count(24)
        for key in ("charge:1041", "charge:1040", "charge:1038"):
            page.get_by_role("row", name=key).get_by_role("checkbox").check()
        page.get_by_label("Action:").select_option("Discard selected messages")
        page.get_by_role("button", name=re.compile("Go|Run")).click()
        expect(page.get_by_text("2 messages will be discarded.")).to_be_visible()
        page.get_by_role("button", name="Yes, discard").click()
        expect(page.locator(".messagelist")).to_have_text(
            "2 messages are discarded. 1 was skipped: 1 published."
        )

    logged_in(discard)
    keys = ["charge:1041", "charge:1040", "charge:1038"]
    states = [OutboxMessage.objects.get(key=key).status for key in keys]
    assert states == ["discarded", "published", "discarded"]
    assert sorted(LogEntry.objects.values_list("change_message", flat=True)) == [
        "Discarded; it was dead.",
        "Discarded; it was pending.",
    ]


def test_a_person_finds_a_message_by_its_id_and_by_its_date(
    logged_in: Callable[..., None],
) -> None:
    message = OutboxMessage.objects.get(key="receipt:1030")

    def find(page: Page) -> None:
        page.locator("#searchbar").fill(str(message.pk))
        page.get_by_role("button", name="Search").click()
        expect(page.locator("#result_list tbody tr")).to_have_count(1)
        page.get_by_role("link", name="Show all").click()
        page.locator(".toplinks a").last.click()
        expect(page.get_by_role("row", name="charge:1041")).to_be_visible()
        page.get_by_role("link", name="recorded").click()
        expect(page.get_by_role("row", name="receipt:1041")).to_be_visible()
        expect(page.get_by_role("row", name="charge:1041")).to_have_count(0)

    logged_in(find)


def test_the_picture_of_the_readme(logged_in: Callable[..., None], tmp_path: Path) -> None:
    picture = Path(os.environ.get("ADMIN_PICTURE", tmp_path / "admin.png"))
    logged_in(lambda page: page.screenshot(path=picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
