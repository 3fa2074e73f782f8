"""A response is replayed with its own bytes, and without what belonged to the first client."""

from __future__ import annotations

import pytest
from django.http import HttpResponse, HttpResponseRedirect, StreamingHttpResponse

from idempotency import responses, results
from idempotency.exceptions import ResultUnavailable
from idempotency.responses import StoredResponse, keep, replay

LARGEST = 100


def replayed(response: HttpResponse) -> HttpResponse:
    return replay(responses.loads(responses.dumps(keep(response, largest=LARGEST))))


@pytest.mark.parametrize(
    "body",
    [b"", b"0", b"false", b"null", b"{}", b"\n", b"a\nb\n", b"http1:", bytes(range(100))],
)
def test_body_comes_back_byte_by_byte(body: bytes) -> None:
    response = replayed(HttpResponse(body, status=201, content_type="application/x"))
    assert response.content == body
    assert (response.status_code, response["Content-Type"]) == (201, "application/x")


def test_headers_of_the_content_come_back() -> None:
    headers = {
        "Content-Type": "text/plain; charset=latin-1",
        "Content-Language": "de",
        "Content-Disposition": 'attachment; filename="ä.txt"',
        "Location": "/orders/1/",
        "Content-Location": "/orders/1/",
        "ETag": '"1"',
        "Last-Modified": "Mon, 23 Nov 2026 10:00:00 GMT",
        "Link": '</orders/2/>; rel="next"',
    }
    response = HttpResponse(headers=headers)
    again = replayed(response)
    assert {name: again[name] for name in headers} == {name: response[name] for name in headers}


def test_headers_of_the_first_exchange_do_not_come_back() -> None:
    response = HttpResponse(
        headers={
            "Set-Cookie": "session=a",
            "WWW-Authenticate": "Basic",
            "Date": "Mon, 23 Nov 2026 10:00:00 GMT",
            "Content-Length": "3",
            "X-Request-Id": "1",
            "RateLimit-Remaining": "9",
            "Connection": "close",
            "Cache-Control": "max-age=60",
        }
    )
    response.set_cookie("session", "a")
    again = replayed(response)
    assert dict(again.items()) == {
        "Content-Type": "text/html; charset=utf-8",
        "Idempotent-Replayed": "true",
        "Cache-Control": "no-store",
    }
    assert not again.cookies


def test_extra_headers_but_never_a_cookie() -> None:
    response = HttpResponse(headers={"X-Total": "5", "Set-Cookie": "a=b"})
    kept = keep(response, largest=LARGEST, extra_headers=("x-total", "Set-Cookie"))
    assert kept.header("X-Total") == "5"
    assert kept.header("Set-Cookie") is None


def test_redirect_is_one_for_djangos_own_test_tools() -> None:
    assert vars(replayed(HttpResponseRedirect("/orders/1/")))["url"] == "/orders/1/"
    assert not hasattr(replayed(HttpResponse()), "url")


def test_response_without_a_content_type() -> None:
    response = HttpResponse(status=204)
    del response["Content-Type"]
    assert "Content-Type" not in replayed(response)


@pytest.mark.parametrize(
    ("response", "store_body", "missing"),
    [
        (StreamingHttpResponse([b"a"]), True, "streaming"),
        (HttpResponse(b"x" * 101), True, "too large"),
        (HttpResponse(b"secret"), False, "withheld"),
        (HttpResponse(b"zip", headers={"Content-Encoding": "gzip"}), True, "encoded"),
        (HttpResponse(b"x" * 100), True, ""),
        (HttpResponse(b""), False, ""),
    ],
)
def test_body_that_is_not_kept(response: HttpResponse, store_body: bool, missing: str) -> None:
    response["Location"] = "/orders/1/"
    kept = keep(response, store_body=store_body, largest=LARGEST)
    assert kept.missing == missing
    assert (kept.body is None) == bool(missing)
    assert kept.header("Location") == "/orders/1/"
    assert responses.loads(responses.dumps(kept)) == kept


@pytest.mark.parametrize("stored", [b"", results.dumps(5), b"http2:[]"])
def test_result_of_another_codec(stored: bytes) -> None:
    with pytest.raises(ResultUnavailable):
        responses.loads(stored)
    with pytest.raises(ResultUnavailable):
        results.loads(responses.dumps(StoredResponse(200, (), b"")))
