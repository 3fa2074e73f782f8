"""The fingerprint of an HTTP request: what a retry has in common with the first attempt."""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal, InvalidOperation
from io import BytesIO
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import parse_qsl

from django.core.exceptions import RequestDataTooBig
from django.core.files.uploadedfile import UploadedFile
from django.core.files.uploadhandler import FileUploadHandler
from django.http import RawPostDataException
from django.http.multipartparser import MultiPartParser, MultiPartParserError
from django.utils.datastructures import MultiValueDict
from django.utils.http import parse_header_parameters

from idempotency import digests

if TYPE_CHECKING:
    from collections.abc import Iterable

    from django.http import HttpRequest

MULTIPART = "multipart/form-data"
CSRF_FIELD = "csrfmiddlewaretoken"
"""Says who may post the form, not what the form says; Django masks it anew for each page."""


class RequestTooLarge(Exception):
    """The body has more bytes than a guarded view takes."""


def fingerprint(request: HttpRequest, *, largest: int) -> str:
    """Return a SHA-256 in hex of the method, path, query, media type and body.

    JSON counts by value, whatever its spacing and the order of its members; a form by its fields
    in order; multipart by its parts, whatever the boundary; anything else byte by byte. The view
    can still read the body. ``request`` is Django's or REST framework's.

    Raises ``RequestTooLarge`` for a body of more than ``largest`` bytes.
    """
    media_type = parse_header_parameters(request.META.get("CONTENT_TYPE", ""))[0].lower()
    return digests.fingerprint(
        [
            request.method,
            request.path.encode("utf-8", "surrogatepass"),
            _pairs(request.META.get("QUERY_STRING", "")),
            media_type,
            _payload(request, media_type, largest),
        ]
    )


def _payload(request: HttpRequest, media_type: str, largest: int) -> Any:
    if int(request.META.get("CONTENT_LENGTH") or 0) > largest:
        raise RequestTooLarge
    try:
        body = request.body
    except RequestDataTooBig:
        raise RequestTooLarge from None
    except RawPostDataException:
        return _parsed(request, media_type)
    if len(body) > largest:
        raise RequestTooLarge
    if media_type == MULTIPART:
        return _parts(request, body)
    if media_type == "application/x-www-form-urlencoded":
        return [pair for pair in _pairs(body.decode("latin-1")) if pair[0] != CSRF_FIELD]
    if media_type == "application/json" or media_type.endswith("+json"):
        return _json(body)
    return body


def _parsed(request: HttpRequest, media_type: str) -> Any:
    """The payload of a request whose stream has been read before, as its reader left it.

    CSRF protection parses a multipart form, and a REST framework permission may look at the data.
    """
    data: Any = getattr(request, "data", None)
    if media_type == MULTIPART and (data is not None or request.method == "POST"):
        files: Iterable[tuple[str, list[UploadedFile[Any]]]] = request.FILES.lists()
        return _fields(request.POST), [_file(field, f) for field, some in files for f in some]
    if data is None:
        return request.body  # Django's error says what has happened.
    if isinstance(data, MultiValueDict):
        return _fields(data)
    if isinstance(data, dict):  # REST framework's FileUploadParser leaves a file in it
        return {n: _file(n, v) if isinstance(v, UploadedFile) else v for n, v in data.items()}
    return data


def _parts(request: HttpRequest, body: bytes) -> Any:
    """Parse the body apart from the request: its own POST knows no PATCH, and keeps the files."""
    meta = {**request.META, "CONTENT_LENGTH": str(len(body))}
    files = _Digests(request)
    try:
        fields, _ = MultiPartParser(meta, BytesIO(body), [files], request.encoding).parse()
    except MultiPartParserError:
        return body
    return _fields(fields), files.taken


class _Digests(FileUploadHandler):
    """Takes the digest of each file and keeps none."""

    def __init__(self, request: HttpRequest) -> None:
        super().__init__(request)
        self.taken: list[tuple[Any, ...]] = []

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        super().new_file(*args, **kwargs)
        self._digest = hashlib.sha256()

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        self._digest.update(raw_data)

    def file_complete(self, file_size: int) -> None:
        self.taken.append(
            (self.field_name, self.file_name, self.content_type, self._digest.hexdigest())
        )


def _file(field: str, file: UploadedFile[Any]) -> tuple[Any, ...]:
    digest = hashlib.sha256()
    for chunk in file.chunks():
        digest.update(chunk)
    file.seek(0)
    return field, file.name, file.content_type, digest.hexdigest()


def _fields(form: MultiValueDict[str, Any]) -> list[Any]:
    return [(name, values) for name, values in form.lists() if name != CSRF_FIELD]


def _pairs(encoded: str) -> list[tuple[str, str]]:
    """Decode to one character per byte, so that no bad encoding makes two queries one."""
    return parse_qsl(encoded, keep_blank_values=True, encoding="latin-1")


def _json(body: bytes) -> str | bytes:
    """A digest of what the JSON says; the bytes where it does not say one thing for certain."""
    try:
        return digests.fingerprint(
            json.loads(
                body, parse_float=Decimal, parse_constant=_refuse, object_pairs_hook=_members
            )
        )
    except (ValueError, RecursionError, InvalidOperation):  # the last: an exponent without end
        return body


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a member is there twice")
    return members


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
