"""Answers that tell a client what is wrong with its key (RFC 9457)."""

from __future__ import annotations

import json
import math

from django.http import HttpResponse


class Problem(Exception):
    """A request is answered without its view. ``code`` tells a program what to do next."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        headers: dict[str, str] | None = None,
        **members: object,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.headers = headers or {}
        self.members = members

    def response(self) -> HttpResponse:
        """Return the answer, as application/problem+json."""
        answer = HttpResponse(
            status=self.status,
            content_type="application/problem+json",
            headers={**self.headers, "Cache-Control": "no-store"},
        )
        answer.content = json.dumps(
            {
                "title": answer.reason_phrase,
                "status": self.status,
                "code": self.code,
                "detail": str(self),
                **self.members,
            }
        ).encode()
        return answer


def key_missing(documentation: str) -> Problem:
    return Problem(
        400,
        "idempotency-key-missing",
        "This request needs an Idempotency-Key header: a value of your choice, new for each "
        "intent and the same for each retry of it.",
        headers=_described_by(documentation),
    )


def key_invalid(detail: str, documentation: str) -> Problem:
    return Problem(400, "idempotency-key-invalid", detail, headers=_described_by(documentation))


def scope_missing() -> Problem:
    return Problem(
        400,
        "idempotency-scope-missing",
        "An Idempotency-Key is taken from authenticated callers only.",
    )


def body_too_large(largest: int) -> Problem:
    return Problem(
        413,
        "idempotency-body-too-large",
        f"With an Idempotency-Key the body may have at most {largest} bytes.",
    )


def key_reused() -> Problem:
    return Problem(
        422,
        "idempotency-key-reused",
        "This Idempotency-Key belongs to another request. Use a new key for a new intent.",
    )


def in_progress(retry_after: float) -> Problem:
    return Problem(
        409,
        "idempotency-in-progress",
        "A request with this Idempotency-Key is being executed. Retry with the same key.",
        headers=_retry_after(retry_after),
    )


def outcome_unknown() -> Problem:
    return Problem(
        409,
        "idempotency-outcome-unknown",
        "An earlier request with this Idempotency-Key ended without telling its outcome. "
        "Retrying cannot help: ask the service.",
    )


def response_unavailable(
    original_status: int | None = None, location: str | None = None
) -> Problem:
    return Problem(
        409,
        "idempotency-response-unavailable",
        "The request with this Idempotency-Key was executed, and is not executed again; its "
        "response was not kept.",
        headers={} if location is None else {"Location": location},
        **({} if original_status is None else {"original_status": original_status}),
    )


def unavailable(retry_after: float) -> Problem:
    return Problem(
        503,
        "idempotency-unavailable",
        "The key cannot be looked up now. Retry with the same key.",
        headers=_retry_after(retry_after),
    )


def _described_by(documentation: str) -> dict[str, str]:
    return {"Link": f'<{documentation}>; rel="describedby"'} if documentation else {}


def _retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
