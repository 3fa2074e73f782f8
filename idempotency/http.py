"""``@idempotent_view``: a view that runs once per ``Idempotency-Key``."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from idempotency import header, problems, requests, responses
from idempotency.calls import key_text
from idempotency.conf import conf, duration
from idempotency.digests import make_key
from idempotency.exceptions import (
    IdempotencyError,
    ImproperlyUsed,
    KeyInProgress,
    KeyReused,
    OutcomeUnknown,
    ResultUnavailable,
)
from idempotency.problems import Problem

if TYPE_CHECKING:
    from idempotency.execution import Operation
    from idempotency.responses import StoredResponse

View = TypeVar("View", bound=Callable[..., Any])
Response = TypeVar("Response", bound=HttpResponseBase)
Identify = Callable[[Any], Any]
"""Takes the request, returns a text, int or UUID, or None."""

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
NEVER_STORED = frozenset({401, 403, 408, 409, 423, 425, 429})
"""Client errors about this caller or this moment: another attempt may be answered differently."""
LONGEST = 255
RETRY_AFTER_OUTAGE = 5
"""Seconds."""

FINAL = "idempotency_final"
GUARDED = "idempotency_guarded"


@overload
def idempotent_view(view: View, /) -> View: ...


@overload
def idempotent_view(
    *,
    required: bool = ...,
    methods: Collection[str] = ...,
    scope: Identify | None = ...,
    anonymous: Literal["reject", "ignore"] | Identify = ...,
    ttl: float | timedelta | None = ...,
    wait: float | timedelta | None = ...,
    store_statuses: Collection[int] = ...,
    store_body: bool = ...,
    using: str | None = ...,
) -> Callable[[View], View]: ...


def idempotent_view(view: Any = None, /, **options: Any) -> Any:
    """Run a view once per caller and ``Idempotency-Key``; a retry gets the stored response.

    Goes on a function view, sync or async, on the handler of a class (``post``, a viewset's
    ``create`` or ``@action``; with ``method_decorator`` or without), and on ``@api_view``, above
    it or below: wherever authentication, permissions and throttles have passed. What the view
    writes, the messages it enqueues, the key and the response are one transaction.

    ``required``
        Without the header: True answers 400, False runs the view unguarded.
    ``methods``
        The methods that are guarded. Others, and the safe ones always, ignore the header.
    ``scope``
        Takes the request and returns whose key it is, such as a client id: text, int or UUID. By
        default the authenticated user. Never a secret, and nothing that a caller can choose.
    ``anonymous``
        For a request without a scope: ``"reject"`` answers 400, ``"ignore"`` runs the view
        unguarded, a callable like ``scope`` tells one anonymous caller from another.
    ``ttl``
        Seconds or timedelta for which a retry is recognised; ``IDEMPOTENCY_TTL`` by default.
    ``wait``
        Seconds or timedelta to wait for a twin that is being executed; by default it is answered
        409 at once.
    ``store_statuses``
        Client errors that are final, such as ``(402, 422)``; see also ``mark_final``. 2xx and 3xx
        always are. Any other response rolls back what the view wrote, and a retry runs it again.
    ``store_body``
        False keeps no body, for one that shows a secret once: a retry is answered 409.
    ``using``
        The database alias of the transaction; by default where the router writes
        ``IdempotencyKey``.

    Decorating raises ``TypeError`` and ``ValueError`` for what cannot be guarded that way.
    """
    guard = ViewGuard(**options)
    return guard.on if view is None else guard.on(view)


def mark_final(response: Response) -> Response:
    """Have a client error stored, replayed and its writes committed, like a success; return it.

    Raises ``ValueError`` for a status that is never stored: 5xx, and those of ``NEVER_STORED``.
    """
    _require_storable(response.status_code, "mark_final()")
    setattr(response, FINAL, True)
    return response


class ViewGuard:
    """The rules under which a view runs once."""

    def __init__(
        self,
        *,
        required: bool = True,
        methods: Collection[str] = ("POST", "PATCH"),
        scope: Identify | None = None,
        anonymous: Literal["reject", "ignore"] | Identify = "reject",
        ttl: float | timedelta | None = None,
        wait: float | timedelta | None = None,
        store_statuses: Collection[int] = (),
        store_body: bool = True,
        using: str | None = None,
    ) -> None:
        if isinstance(methods, str) or not methods:
            raise TypeError(f"methods= is a list of method names, not {methods!r}.")
        self.methods = frozenset(method.upper() for method in methods)
        if safe := SAFE_METHODS & self.methods:
            raise ValueError(f"methods= has {', '.join(sorted(safe))}, which changes nothing.")
        if anonymous not in ("reject", "ignore") and not callable(anonymous):
            raise TypeError(f"anonymous= is 'reject', 'ignore' or a callable, not {anonymous!r}.")
        if scope is not None and not callable(scope):
            raise TypeError(f"scope= is a callable that takes the request, not {scope!r}.")
        for status in store_statuses:
            _require_storable(status, "store_statuses=")
        self._required = required
        self._scope = scope or caller
        self._anonymous = anonymous
        self._ttl = None if ttl is None else duration(ttl, "ttl")
        self._wait = timedelta(0) if wait is None else duration(wait, "wait", least=timedelta(0))
        self._store_statuses = frozenset(store_statuses)
        self._store_body = store_body
        self._using = using

    @property
    def using(self) -> str:
        """The database alias of the transaction in which the view runs."""
        from django.db import router

        from idempotency.models import IdempotencyKey

        return self._using or router.db_for_write(IdempotencyKey)

    def on(self, view: Any) -> Any:
        """Return the view, guarded."""
        if isinstance(view, type):
            raise TypeError(f"@idempotent_view goes on a handler of {view.__name__}, not on it.")
        if _is_method(view, "dispatch"):
            raise TypeError(
                "@idempotent_view goes on a handler, such as post: at dispatch nobody has asked "
                "yet whether the caller may do this."
            )
        cls = getattr(view, "cls", None) or getattr(view, "view_class", None)
        if cls is not None:
            return self._on_class_view(view, cls)
        if iscoroutinefunction(view):
            return self._on_async(view)

        @functools.wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            request = _request(args, view)
            call = functools.partial(view, *args, **kwargs)
            return self.answer(request, view, call) if self._applies(request) else call()

        return guarded

    def _on_async(self, view: Any) -> Any:
        @functools.wraps(view)
        async def guarded(*args: Any, **kwargs: Any) -> Any:
            request = _request(args, view)

            async def call() -> Any:
                return await view(*args, **kwargs)

            if not self._applies(request):
                return await call()
            # One thread has the transaction. There the view's own database calls run too, because
            # async_to_sync sends to it what the view gives to sync_to_async.
            return await sync_to_async(self.answer)(request, view, async_to_sync(call))

        return guarded

    def _on_class_view(self, view: Any, cls: type) -> Any:
        if "rest_framework" in sys.modules and _drf().guard_api_view(cls, self.on):
            return view
        raise TypeError(
            f"Put @idempotent_view on a handler of {cls.__name__}, such as post, not on its "
            "as_view(): there nobody has asked yet whether the caller may do this."
        )

    def _applies(self, request: Any) -> bool:
        """False too inside a view that is guarded already: a request is handled once."""
        return request.method in self.methods and not getattr(request, GUARDED, False)

    def answer(
        self, request: Any, view: Any, call: Callable[[], HttpResponseBase]
    ) -> HttpResponseBase:
        """Return the response of ``call``, of an earlier one with the same key, or a problem."""
        setattr(request, GUARDED, True)
        try:
            operation = self._operation(request, view)
            if operation is None:
                return call()
            return self._run_once(request, operation, call)
        except Problem as problem:
            return _finish(request, problem.response(), original=False)
        finally:
            delattr(request, GUARDED)

    def _operation(self, request: Any, view: Any) -> Operation | None:
        """Return what shall run once; None if the view runs unguarded. Raises ``Problem``."""
        from idempotency.execution import Operation

        scope = self._scope_of(request)
        raw_key = request.headers.get(header.NAME)
        if scope is None and self._anonymous == "ignore":
            return None
        if raw_key is None and not self._required:
            return None
        key = self._key(raw_key)
        if scope is None:
            raise problems.scope_missing()
        try:
            fingerprint = requests.fingerprint(request, largest=conf.MAX_REQUEST_BYTES)
        except requests.RequestTooLarge:
            raise problems.body_too_large(conf.MAX_REQUEST_BYTES) from None
        return Operation(
            namespace=_fitting(f"{request.method} {_route(request, view)}"),
            scope=scope,
            key=key,
            ttl=self._ttl or conf.TTL,
            wait=self._wait,
            fingerprint=fingerprint,
        )

    def _key(self, raw: str | None) -> str:
        if raw is None:
            raise problems.key_missing(conf.DOCUMENTATION_URL)
        try:
            return header.parse(raw)
        except header.MalformedKey as error:
            raise problems.key_invalid(str(error), conf.DOCUMENTATION_URL) from None

    def _scope_of(self, request: Any) -> str | None:
        scope = self._scope(request)
        if scope not in (None, ""):
            return _fitting(key_text(scope, "scope="))
        if callable(self._anonymous):
            scope = self._anonymous(request)
            if scope not in (None, ""):
                # Apart from those who are known.
                return _fitting(f"anonymous:{key_text(scope, 'anonymous=')}")
        return None

    def _run_once(
        self, request: Any, operation: Operation, call: Callable[[], HttpResponseBase]
    ) -> HttpResponseBase:
        from idempotency.execution import run_once
        from idempotency.models import IdempotencyKey
        from idempotency.querysets import IdempotencyKeyQuerySet

        attempt = _Attempt(self, request, call)
        try:
            outcome = run_once(
                IdempotencyKeyQuerySet(IdempotencyKey, using=self.using),
                operation,
                attempt.run,
                codec=responses,
            )
        except _NotStored:
            return attempt.response
        except (IdempotencyError, OperationalError, InterfaceError) as error:
            problem = None if attempt.in_view else _problem_of(error)
            if problem is None:
                raise
            raise problem from error
        return _replay(request, outcome.value) if outcome.replayed else attempt.response

    def is_final(self, response: HttpResponseBase) -> bool:
        """Whether the response is stored and what the view wrote is committed."""
        status = response.status_code
        final = status in self._store_statuses or getattr(response, FINAL, False)
        return HTTPStatus.OK <= status < HTTPStatus.BAD_REQUEST or (final and _storable(status))

    def keep(self, response: object) -> StoredResponse:
        """Return what is kept of a response. Raises ``_NotStored`` for one that is not final."""
        if not isinstance(response, HttpResponseBase):
            raise _NotStored  # Django says so better.
        if not self.is_final(response):
            raise _NotStored
        return responses.keep(
            response,
            store_body=self._store_body,
            largest=conf.MAX_RESPONSE_BYTES,
            extra_headers=conf.REPLAY_HEADERS,
        )


class _Attempt:
    """One execution of the view, inside its transaction."""

    response: HttpResponseBase
    in_view = False
    """What is raised meanwhile is the view's own affair."""

    def __init__(
        self, guard: ViewGuard, request: Any, call: Callable[[], HttpResponseBase]
    ) -> None:
        self._guard = guard
        self._request = request
        self._call = call

    def run(self) -> StoredResponse:
        self.in_view = True
        # Rendered here, so that the bytes are there to be stored, and on a rollback still show
        # what the view saw.
        self.response = _finish(self._request, self._call(), original=True)
        self.in_view = False
        return self._guard.keep(self.response)


class _NotStored(Exception):
    """The response is not final: the transaction is rolled back."""


def caller(request: Any) -> str | None:
    """Return the authenticated user's model and primary key; None where there is no user.

    The model, because a service client may have the same primary key as a person.
    """
    user = getattr(request, "user", None)
    pk = getattr(user, "pk", None)
    if pk is None or not getattr(user, "is_authenticated", False):
        return None
    meta = getattr(user, "_meta", None)
    kind = meta.concrete_model._meta.label_lower if meta else type(user).__qualname__
    return f"{kind}:{pk}"


def _replay(request: Any, stored: StoredResponse) -> HttpResponseBase:
    if stored.body is None:
        raise problems.response_unavailable(stored.status, stored.header("Location"))
    return _finish(request, responses.replay(stored), original=False)


def _problem_of(error: Exception) -> Problem | None:
    match error:
        case KeyInProgress():
            return problems.in_progress(error.retry_after)
        case KeyReused():
            return problems.key_reused()
        case OutcomeUnknown():
            return problems.outcome_unknown()
        case ResultUnavailable():
            return problems.response_unavailable()
        case OperationalError() | InterfaceError():
            return problems.unavailable(RETRY_AFTER_OUTAGE)
    return None


def _finish(request: Any, response: Any, *, original: bool) -> HttpResponseBase:
    finished: HttpResponseBase
    if _is_drf(request):
        finished = _drf().finish(request, response, original=original)
    else:
        finished = response.render() if hasattr(response, "render") else response
    return finished


def _request(args: tuple[Any, ...], view: Any) -> Any:
    """Return the request: the first argument, or the one after ``self``."""
    for candidate in args[:2]:
        if isinstance(candidate, HttpRequest) or _is_drf(candidate):
            return candidate
    raise ImproperlyUsed(
        f"{view.__qualname__} was called without a request: @idempotent_view goes on views, and "
        "@idempotent on other functions."
    )


def _is_method(view: Any, name: str) -> bool:
    *owner, own_name = getattr(view, "__qualname__", "").split(".")
    return own_name == name and bool(owner) and owner[-1] != "<locals>"


def _route(request: Any, view: Any) -> str:
    """The route's template; outside of a URLconf, as in a test of the view, the view's name."""
    match = request.resolver_match
    return match.route if match else f"{view.__module__}.{view.__qualname__}"


def _fitting(text: str) -> str:
    return text if len(text) <= LONGEST and text.isprintable() else make_key("http", text)


def _storable(status: int) -> bool:
    return status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in NEVER_STORED


def _require_storable(status: int, origin: str) -> None:
    if not _storable(status):
        raise ValueError(f"{origin}: a response with status {status} is never stored.")


def _is_drf(candidate: object) -> bool:
    return "rest_framework.request" in sys.modules and _drf().is_request(candidate)


def _drf() -> Any:
    from idempotency.contrib import drf

    return drf
