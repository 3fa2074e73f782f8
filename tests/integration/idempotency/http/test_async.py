"""Async views: one transaction around what their coroutines do, on the thread that holds it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, transaction
from django.test import AsyncClient, RequestFactory

from idempotency import idempotent_view
from idempotency.models import IdempotencyKey
from tests.integration.idempotency.http.test_answers import assert_replay
from tests.project.models import Effect

if TYPE_CHECKING:
    from django.contrib.auth.models import User
    from django.http import HttpRequest
    from django.test import Client

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.database]

PATHS = ("/pay_async/", "/async/", "/async-decorated/", "/pay/")


@pytest.mark.parametrize("path", PATHS)
def test_under_wsgi(client: Client, path: str) -> None:
    assert_replay(client.post(path), client.post(path))
    assert Effect.objects.count() == IdempotencyKey.objects.count() == 1


@pytest.mark.parametrize("path", PATHS)
def test_under_asgi(alice: User, path: str) -> None:
    client = AsyncClient()
    client.force_login(alice)

    async def twice() -> list[Any]:
        return [await client.post(path, headers={"Idempotency-Key": "k"}) for _ in range(2)]

    assert_replay(*async_to_sync(twice)())
    assert Effect.objects.count() == IdempotencyKey.objects.count() == 1


def test_other_response_rolls_back(client: Client) -> None:
    for _ in range(2):
        assert client.post("/refuse_async/").status_code == 400
    assert not Effect.objects.exists()
    assert not IdempotencyKey.objects.exists()


def test_ignored_method_stays_async(client: Client) -> None:
    client.get("/pay_async/")
    client.get("/pay_async/")
    assert Effect.objects.count() == 2


def test_cancelled_request_leaves_nothing(alice: User) -> None:
    entered: list[bool] = []

    async def view(request: HttpRequest) -> Any:
        await Effect.objects.acreate(label="cancelled")
        entered.append(connection.in_atomic_block)
        await asyncio.sleep(60)

    request = RequestFactory().post("/", headers={"Idempotency-Key": "k"})
    request.user = alice
    guarded: Any = idempotent_view(view)

    async def cancel() -> None:
        running = asyncio.ensure_future(guarded(request))
        while not entered:
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    async_to_sync(cancel)()
    assert not transaction.get_connection().in_atomic_block
    assert not Effect.objects.exists()
    assert not IdempotencyKey.objects.exists()
