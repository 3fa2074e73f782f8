"""The shop's side of the gateway. It tells apart what was refused from what may have been done."""

from __future__ import annotations

import json
from http import HTTPStatus
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from django.conf import settings

if TYPE_CHECKING:
    from decimal import Decimal

TIMEOUT = 2.0
"""Seconds. A gateway that says nothing for longer may have charged all the same."""


class GatewayError(Exception):
    """Base of what goes wrong with the gateway."""


class NothingDone(GatewayError):
    """The gateway was not reached, or refused: nothing was done."""


class Unknown(GatewayError):
    """No answer came. Whether it was done is not known."""


class Declined(GatewayError):
    """The customer's bank says no. Nothing was done, and asking again changes nothing."""


def charge(reference: str, amount: Decimal, currency: str, *, idempotency_key: str) -> str:
    """Charge, once per key; return the gateway's id of the charge. Raises ``GatewayError``."""
    order = {"reference": reference, "amount": int(amount * 100), "currency": currency}
    answer = _post("/charges", order, {"Idempotency-Key": idempotency_key})
    return str(answer["id"])


def notify(recipient: str, text: str) -> None:
    """Send a notification; each call sends one. Raises ``GatewayError``."""
    _post("/notifications", {"recipient": recipient, "text": text}, {})


def _post(path: str, body: object, headers: dict[str, str]) -> Any:
    request = Request(  # noqa: S310
        settings.GUIDE_GATEWAY_URL + path,
        json.dumps(body).encode(),
        {"Content-Type": "application/json", **headers},
    )
    try:
        with urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
            return json.load(answer)
    except HTTPError as error:
        with error:
            reason = f"{error.code}: {error.read(500)!r}"
        if error.code == HTTPStatus.PAYMENT_REQUIRED:
            raise Declined(reason) from None
        if error.code == HTTPStatus.SERVICE_UNAVAILABLE:
            raise NothingDone(reason) from None
        raise GatewayError(reason) from None
    except URLError as error:
        if isinstance(error.reason, ConnectionRefusedError):
            raise NothingDone(str(error.reason)) from None
        raise Unknown(str(error.reason)) from None
    except (OSError, HTTPException, ValueError) as error:
        raise Unknown(str(error) or type(error).__name__) from None
