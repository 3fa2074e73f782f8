"""Clients of the guarded views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import set_urlconf

from tests.integration.idempotency.http.views import gate

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _urls(settings: Any) -> Iterator[None]:
    settings.ROOT_URLCONF = "tests.integration.idempotency.http.urls"
    set_urlconf(None)
    gate.reset()
    yield
    gate.opened.set()


@pytest.fixture
def alice(db: None) -> User:
    user = User.objects.create_user("alice")
    user.user_permissions.add(Permission.objects.get(codename="add_effect"))
    return user


@pytest.fixture
def bob(db: None) -> User:
    user = User.objects.create_user("bob")
    user.user_permissions.add(Permission.objects.get(codename="add_effect"))
    return user


@pytest.fixture
def client(alice: User) -> Client:
    """Alice's browser, which sends the key "k" with each request unless told otherwise."""
    return client_of(alice)


def client_of(user: User | None, **headers: str) -> Client:
    client = Client(headers={"Idempotency-Key": "k", **headers})
    if user is not None:
        client.force_login(user)
    return client


def without_key(user: User | None) -> Client:
    client = Client()
    if user is not None:
        client.force_login(user)
    return client
