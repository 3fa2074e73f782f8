"""A response as it is stored with its key, and as it is replayed. Its bytes stay the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from django.http import HttpResponse

from idempotency.exceptions import ResultUnavailable

if TYPE_CHECKING:
    from collections.abc import Collection

    from django.http import HttpResponseBase

CODEC = b"http1:"
REPLAYED = "Idempotent-Replayed"

KEPT_HEADERS = frozenset(
    {
        "content-type",
        "content-language",
        "content-disposition",
        "location",
        "content-location",
        "etag",
        "last-modified",
        "link",
    }
)

NEVER_KEPT_HEADERS = frozenset(
    {
        # Who is speaking.
        "authorization",
        "cookie",
        "proxy-authenticate",
        "proxy-authorization",
        "set-cookie",
        "www-authenticate",
        # This message and its way, not its content.
        "connection",
        "content-encoding",
        "content-length",
        "date",
        "keep-alive",
        "server",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """What is kept of a response."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes | None
    missing: str = ""
    """Why there is no body: ``"streaming"``, ``"encoded"``, ``"withheld"`` or ``"too large"``."""

    def header(self, name: str) -> str | None:
        """Return the value of a header, or None."""
        return next((value for kept, value in self.headers if kept.lower() == name.lower()), None)


def keep(
    response: HttpResponseBase,
    *,
    store_body: bool = True,
    largest: int,
    extra_headers: Collection[str] = (),
) -> StoredResponse:
    """Return what is kept of a rendered response.

    ``largest`` is in bytes. Without ``store_body`` an empty body is kept still.
    """
    kept = (KEPT_HEADERS | {name.lower() for name in extra_headers}) - NEVER_KEPT_HEADERS
    headers = tuple((name, value) for name, value in response.items() if name.lower() in kept)
    body: bytes | None = None
    if response.streaming:
        missing = "streaming"
    elif response.has_header("Content-Encoding"):
        missing = "encoded"  # Another client, or a proxy, may not read this encoding.
    else:
        content = cast("HttpResponse", response).content
        missing = _why_missing(content, store_body, largest)
        body = None if missing else content
    return StoredResponse(response.status_code, headers, body, missing)


def _why_missing(content: bytes, store_body: bool, largest: int) -> str:
    if content and not store_body:
        return "withheld"
    return "too large" if len(content) > largest else ""


def replay(stored: StoredResponse) -> HttpResponse:
    """Return the response again; its body must have been kept."""
    response = HttpResponse(stored.body or b"", status=stored.status, headers=dict(stored.headers))
    if stored.header("Content-Type") is None:
        del response["Content-Type"]
    location = stored.header("Location")
    if location is not None:
        # Django's redirects have it: assertRedirects() and the test client read it.
        response.url = location  # type: ignore[attr-defined]
    response[REPLAYED] = "true"
    response["Cache-Control"] = "no-store"
    return response


def dumps(response: StoredResponse) -> bytes:
    """Return the bytes of a stored response."""
    head = [response.status, response.headers, response.missing]
    return CODEC + json.dumps(head, separators=(",", ":")).encode() + b"\n" + (response.body or b"")


def loads(stored: bytes) -> StoredResponse:
    """Return the stored response. Raises ``ResultUnavailable`` for what is none."""
    if not stored.startswith(CODEC):
        raise ResultUnavailable(
            f"The result was stored as {stored[:8]!r}…, which is not a response of this version."
        )
    head, _, body = stored[len(CODEC) :].partition(b"\n")
    status, headers, missing = json.loads(head)
    pairs: list[Any] = headers
    return StoredResponse(
        status,
        tuple((name, value) for name, value in pairs),
        None if missing else body,
        missing,
    )
