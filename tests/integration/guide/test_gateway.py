"""The gateway charges once per key and has the bad days that it is told to have."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from sample_project.gateway import client
from sample_project.gateway.faults import Fault, Faults
from tests.integration.guide.racing import race

if TYPE_CHECKING:
    from sample_project.gateway.server import Gateway


def charge(key: str = "k", amount: str = "10.00") -> str:
    return client.charge("p1", Decimal(amount), "EUR", idempotency_key=key)


def get(gateway: Gateway, path: str) -> Any:
    with urlopen(gateway.url + path, timeout=10) as answer:
        return json.load(answer)


def test_one_key_is_one_charge(gateway: Gateway) -> None:
    assert len(set(race(charge))) == 1
    (made,) = get(gateway, "/charges")
    assert (made["amount"], made["currency"], made["reference"]) == (1000, "EUR", "p1")
    assert get(gateway, "/statistics") == {"recognised": 7, "none": 8}


def test_another_key_is_another_charge(gateway: Gateway) -> None:
    assert charge("k1") != charge("k2")


def test_a_key_is_not_for_another_amount(gateway: Gateway) -> None:
    charge()
    with pytest.raises(client.GatewayError, match="422"):
        charge(amount="11.00")
    assert len(gateway.ledger.charges) == 1


def test_a_failure_is_nothing_done(gateway: Gateway) -> None:
    gateway.faults = Faults([Fault.FAIL])
    with pytest.raises(client.NothingDone):
        charge()
    assert gateway.ledger.charges == []


def test_a_timeout_comes_after_the_charge(gateway: Gateway) -> None:
    gateway.faults = Faults([Fault.HANG], hang_seconds=30)
    with pytest.raises(client.Unknown):
        charge()
    assert len(gateway.ledger.charges) == 1
    assert charge() == gateway.ledger.charges[0].id


def test_a_connection_that_breaks_is_unknown_too(gateway: Gateway) -> None:
    gateway.faults = Faults([Fault.HANG], hang_seconds=0)
    with pytest.raises(client.Unknown):
        charge()


def test_the_bank_may_say_no(gateway: Gateway) -> None:
    gateway.faults = Faults([Fault.DECLINE])
    with pytest.raises(client.Declined):
        charge()


def test_a_gateway_that_is_not_there_did_nothing(settings: Any) -> None:
    settings.GUIDE_GATEWAY_URL = "http://127.0.0.1:1"
    with pytest.raises(client.NothingDone):
        charge()


def test_a_bad_day_is_ordered_over_http(gateway: Gateway) -> None:
    order = json.dumps({"script": ["fail"], "decline": 1.0}).encode()
    with urlopen(Request(f"{gateway.url}/faults", order), timeout=10):
        pass
    with pytest.raises(client.NothingDone):
        charge()
    with pytest.raises(client.Declined):
        charge()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("/charges", b"{}", 400), ("/charges", b"no", 400), ("/refunds", b"{}", 404)],
)
def test_a_mistake_is_told(gateway: Gateway, path: str, body: bytes, status: int) -> None:
    with pytest.raises(HTTPError) as told:
        urlopen(Request(gateway.url + path, body), timeout=10)
    assert told.value.code == status
    told.value.close()
