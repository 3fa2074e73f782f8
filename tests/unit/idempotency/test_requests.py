"""Requests that mean the same have one fingerprint, and the view can still read them."""

from __future__ import annotations

import json
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.handlers.asgi import ASGIRequest
from django.test import RequestFactory, override_settings

from idempotency.requests import RequestTooLarge, fingerprint

if TYPE_CHECKING:
    from django.http import HttpRequest

LARGEST = 2**20
FORM = "application/x-www-form-urlencoded"


def post(
    body: str | bytes = b"",
    content_type: str = "application/json",
    path: str = "/pay/",
    method: str = "POST",
) -> HttpRequest:
    return RequestFactory().generic(method, path, body, content_type)


def multipart(boundary: str, *parts: tuple[str, bytes], method: str = "POST") -> HttpRequest:
    body = b"".join(
        b"--%s\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n"
        % (boundary.encode(), head.encode(), content)
        for head, content in parts
    )
    body += b"--%s--\r\n" % boundary.encode()
    return post(body, f"multipart/form-data; boundary={boundary}", method=method)


def taken(request: HttpRequest) -> str:
    return fingerprint(request, largest=LARGEST)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a": 1, "b": [1, 2]}', '{"b":[1,2],"a":1}'),
        ('{"a": 1.0}', '{"a": 1}'),
        ('{"a": 1e2}', '{"a": 100}'),
        ('{"a": "\\u00e9"}', '{"a": "é"}'),
    ],
)
def test_json_that_says_the_same(one: str, other: str) -> None:
    assert taken(post(one)) == taken(post(other))
    assert taken(post(one, "application/vnd.api+json")) == taken(
        post(other, "Application/VND.api+json; charset=utf-8")
    )
    assert taken(post(one, "text/plain")) != taken(post(other, "text/plain"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a": 1}', '{"a": 2}'),
        ('{"a": 1}', '{"a": "1"}'),
        ('{"a": true}', '{"a": 1}'),
        ('{"a": null}', "{}"),
        ('{"a": [1, 2]}', '{"a": [2, 1]}'),
        ('{"a": 0.1}', '{"a": 0.10000000000000000000001}'),
        # What says no one thing for certain counts byte by byte.
        ('{"a": 1, "a": 2}', '{"a": 2}'),
        ('{"a": NaN}', '{"a": Infinity}'),
        ('{"a": ', '{"a":'),
        ("[" * 100_000, "[" * 99_999),
        ("[" * 70 + "]" * 70, " " + "[" * 70 + "]" * 70),
        ("1" + "0" * 5000, "1" + "0" * 5001),
        ("", " "),
    ],
)
def test_json_that_says_something_else(one: str, other: str) -> None:
    assert taken(post(one)) != taken(post(other))
    assert taken(post(one)) == taken(post(one))


@pytest.mark.parametrize(
    "other",
    [
        post("a=1", FORM, method="PATCH"),
        post("a=1", FORM, path="/pay/2/"),
        post("a=1", FORM, path="/pay/?b=2"),
        post("a=1&b=2", FORM),
        post("a=1", "text/plain"),
        post("a=2", FORM),
    ],
    ids=["method", "path", "query", "more", "media type", "value"],
)
def test_another_request(other: HttpRequest) -> None:
    assert taken(post("a=1", FORM)) != taken(other)


@pytest.mark.parametrize(
    "body",
    [
        "1e99999999999999999999",
        '{"a": -1e-99999999999999999999}',
        "9" * 5000,
        "[" * 100_000,
        "NaN",
        '{"a": 1, "a": 1}',
        '{"é": 1, "e\u0301": 2}',
        "{",
    ],
    ids=lambda body: body[:10],
)
def test_json_that_says_nothing_for_certain_counts_by_its_bytes(body: str) -> None:
    assert taken(post(body)) == taken(post(body))
    assert taken(post(body)) != taken(post(f"{body} "))


def test_query_and_form_are_framed() -> None:
    # Joined without frames, each of these would be the other.
    assert taken(post(path="/?a=1%262")) != taken(post(path="/?a=1&2"))
    assert taken(post(path="/?a=b%3Dc")) != taken(post(path="/?a=b&c"))
    assert taken(post(path="/?a=1&b=2")) != taken(post(path="/?b=2&a=1"))
    assert taken(post(path="/?a=%FF")) != taken(post(path="/?a=%FE"))
    assert taken(post("a=1%262", FORM)) != taken(post("a=1&2", FORM))
    assert taken(post("a=%31", FORM)) == taken(post("a=1", FORM))


def test_csrf_token_is_not_the_intent() -> None:
    assert taken(post("a=1&csrfmiddlewaretoken=x", FORM)) == taken(
        post("csrfmiddlewaretoken=y&a=1", FORM)
    )
    one, other = (multipart("aaaa", FIELD, ('name="csrfmiddlewaretoken"', t)) for t in (b"x", b"y"))
    assert taken(one) == taken(other)


FIELD = ('name="title"', b"Invoice")
FILE = ('name="file"; filename="a.txt"\r\nContent-Type: text/plain', b"--content\r\n--")


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_multipart_whatever_the_boundary(method: str) -> None:
    one = multipart("aaaa", FIELD, FILE, method=method)
    assert taken(one) == taken(multipart("bbbbbb", FIELD, FILE, method=method))


@pytest.mark.parametrize(
    "parts",
    [
        [FIELD],
        [FIELD, FILE, FILE],
        [('name="title"', b"Other"), FILE],
        [FIELD, (FILE[0], b"other")],
        [FIELD, (FILE[0].replace("a.txt", "b.txt"), FILE[1])],
        [FIELD, (FILE[0].replace("text/plain", "text/html"), FILE[1])],
        [FIELD, (FILE[0].replace("file", "fyle"), FILE[1])],
    ],
)
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_multipart_with_other_parts(parts: list[tuple[str, bytes]], method: str) -> None:
    original = multipart("aaaa", FIELD, FILE, method=method)
    assert taken(original) != taken(multipart("aaaa", *parts, method=method))


def test_multipart_that_is_none() -> None:
    broken = "multipart/form-data"
    assert taken(post(b"a", broken)) == taken(post(b"a", broken)) != taken(post(b"b", broken))


def test_form_read_before_counts_the_same() -> None:
    """CSRF protection parses a form before the view: then the stream is gone."""
    fresh, parsed = multipart("aaaa", FIELD, FILE), multipart("bbbb", FIELD, FILE)
    assert parsed.POST["title"] == "Invoice"
    assert taken(parsed) == taken(fresh)
    form = post("a=1", FORM)
    assert form.POST["a"] == "1"
    assert taken(form) == taken(post("a=1", FORM))


@pytest.mark.parametrize("parsed_before", [False, True])
def test_view_reads_the_request_after_it(parsed_before: bool) -> None:
    request = multipart("aaaa", FIELD, FILE)
    if parsed_before:
        assert request.POST
    taken(request)
    assert request.POST["title"] == "Invoice"
    file: Any = request.FILES["file"]
    assert file.read() == FILE[1]
    if not parsed_before:
        assert FILE[1] in request.body
    request = post('{"a": 1}')
    taken(request)
    assert json.loads(request.body) == json.loads(request.read()) == {"a": 1}


def test_upload_handlers_run_once() -> None:
    request = RequestFactory().post("/", {"file": SimpleUploadedFile("a.txt", b"content")})
    handlers = list(request.upload_handlers)
    taken(request)
    assert request.upload_handlers == handlers
    assert not any(getattr(handler, "file", None) for handler in handlers)


def test_largest_body() -> None:
    fingerprint(post(b"x" * 10, "text/plain"), largest=10)
    with pytest.raises(RequestTooLarge):
        fingerprint(post(b"x" * 11, "text/plain"), largest=10)


def test_largest_body_without_a_length() -> None:
    """A chunked body tells no length; only ASGI servers pass it on."""
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
    fingerprint(ASGIRequest(scope, BytesIO(b"x" * 10)), largest=10)
    with pytest.raises(RequestTooLarge):
        fingerprint(ASGIRequest(scope, BytesIO(b"x" * 11)), largest=10)


@override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=10)
def test_body_that_django_refuses_is_too_large() -> None:
    with pytest.raises(RequestTooLarge):
        taken(post(b"x" * 11, "text/plain"))
