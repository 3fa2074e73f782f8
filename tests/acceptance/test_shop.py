"""The shop as its customers, its clients and its staff see it, on the processes of the demo."""

from __future__ import annotations

import json
import re
from http.cookiejar import CookieJar
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, OpenerDirector, Request, build_opener

import pytest

from tests.helpers import wait_for

if TYPE_CHECKING:
    from tests.acceptance.conftest import Shop

TOKEN = re.compile(r'name="csrfmiddlewaretoken" value="(\w+)"')


class Visitor:
    """Somebody with a browser that keeps cookies and runs no scripts."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.opener: OpenerDirector = build_opener(HTTPCookieProcessor(CookieJar()))

    def read(self, path: str) -> str:
        with self.opener.open(self.url + path, timeout=30) as answer:
            return str(answer.read().decode())

    def fill_in(self, path: str, **fields: str) -> tuple[str, str]:
        """Fill in the form of a page; return the address of the page that follows, and the page."""
        token = TOKEN.search(self.read(path))
        assert token
        form = urlencode({"csrfmiddlewaretoken": token[1], **fields}).encode()
        with self.opener.open(self.url + path, form, timeout=30) as answer:
            return answer.url.removeprefix(self.url), answer.read().decode()


def call(shop: Shop, body: bytes) -> tuple[int, str]:
    request = Request(
        f"{shop.url}/api/orders/", body, {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with build_opener().open(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_person_places_an_order_and_sees_its_receipt_and_payment(shop: Shop) -> None:
    visitor = Visitor(shop.url)
    path, page = visitor.fill_in("/", customer="Ada <b>", product="pot", quantity="2")
    assert re.fullmatch(r"/orders/\d+/", path)
    assert "Ada &lt;b&gt;, 96.00 in all" in page
    # The page reloads itself until both are there.
    wait_for(lambda: "http-equiv" not in visitor.read(path), message=lambda: shop.demo.output)
    page = visitor.read(path)
    assert "written" in page
    assert "booked" in page
    assert f'href="{path}"' in visitor.read("/")


def test_an_order_that_is_not_valid_comes_back_with_the_reason(shop: Shop) -> None:
    path, page = Visitor(shop.url).fill_in("/", customer="", product="pot", quantity="0")
    assert path == "/"
    assert "This field is required." in page
    assert "greater than or equal to 1" in page


def test_a_client_places_an_order(shop: Shop) -> None:
    order = {"customer": "client", "product": "cup", "quantity": 3}
    status, body = call(shop, json.dumps(order).encode())
    assert status == 201
    path = f"/orders/{json.loads(body)['order']}/"
    wait_for(lambda: "booked" in Visitor(shop.url).read(path), message=lambda: shop.demo.output)
    assert re.search(r"\d\d:\d\d:\d\d 37\.50", Visitor(shop.url).read(path))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"not json", ""),
        (b"[1]", ""),
        (b'{"customer": "x", "product": "no", "quantity": 1}', "product"),
    ],
)
def test_a_clients_mistake_is_a_400(shop: Shop, body: bytes, reason: str) -> None:
    status, answer = call(shop, body)
    assert status == 400
    assert reason in answer


def test_the_printed_login_opens_the_admin(shop: Shop) -> None:
    staff = Visitor(shop.url)
    path, page = staff.fill_in(
        "/admin/login/?next=/admin/", username=shop.user, password=shop.password
    )
    assert path == "/admin/"
    assert "Orders" in page
    for listed in ("order", "receipt", "payment"):
        assert f"{listed}s" in staff.read(f"/admin/shop/{listed}/")
    assert "body" in staff.read("/static/admin/css/base.css")
