"""What Django REST framework does around a handler, done inside the handler's guard.

There its authentication, permissions and throttles have passed; but it renders a response only
after the handler, too late for the bytes to be stored in the handler's transaction.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from rest_framework.request import Request
from rest_framework.views import APIView

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpResponseBase


def is_request(candidate: object) -> bool:
    """Whether it is REST framework's request."""
    return isinstance(candidate, Request)


def guard_api_view(cls: type, guard: Callable[[Any], Any]) -> bool:
    """Guard the handlers of a class that ``@api_view`` made; False for any other class."""
    names = [name for name in APIView.http_method_names if _is_from_api_view(cls, name)]
    for name in names:
        setattr(cls, name, guard(getattr(cls, name)))
    return bool(names)


def finish(request: Any, response: HttpResponseBase, *, original: bool) -> HttpResponseBase:
    """Return the response finalized and rendered, as the client will get it.

    ``original``: it is the handler's own. A replay or a problem gets the view's headers only; an
    override of ``finalize_response`` has done its work on the original, and may count on ``data``.
    """
    view = request.parser_context["view"]
    finalize = view.finalize_response if original else partial(APIView.finalize_response, view)
    finalized = finalize(request, response, *view.args, **view.kwargs)
    finished: HttpResponseBase = finalized.render() if hasattr(finalized, "render") else finalized
    _finalize_once(view, finished)
    return finished


def _finalize_once(view: Any, finished: HttpResponseBase) -> None:
    """The view finalizes what its handler returns; a view lives for one request."""
    finalize = view.finalize_response

    def finalize_response(request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        if response is finished:
            return response
        return finalize(request, response, *args, **kwargs)

    view.finalize_response = finalize_response


def _is_from_api_view(cls: type, name: str) -> bool:
    return getattr(vars(cls).get(name), "__module__", "") == "rest_framework.decorators"
