"""docs/guide/upsert.md"""

from __future__ import annotations

from decimal import Decimal
from uuid import uuid4

import pytest
from django.db import IntegrityError

from sample_project.guide.models import Player, Price
from sample_project.guide.tasks import add_points, set_price
from tests.integration.guide import flawed
from tests.integration.guide.racing import race

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def player() -> Player:
    return Player.objects.create(name="Ada")


def test_the_flaw_score_plus_points_counts_each_delivery(tables: None) -> None:
    flawed.execute("INSERT INTO flawed_scores VALUES (1, 0)")
    for _ in range(3):
        flawed.update_score(1, 10)
    assert flawed.execute("SELECT score FROM flawed_scores") == [(30,)]


def test_the_flaw_an_old_redelivery_overwrites_a_newer_value() -> None:
    prices: dict[str, int] = {}
    for price in (10, 12, 10):
        flawed.set_price("tea", price, prices)
    assert prices == {"tea": 10}


def test_an_event_counts_once_however_often_and_however_concurrently(player: Player) -> None:
    event = uuid4()
    race(lambda: add_points(event, player.pk, 10))
    add_points(event, player.pk, 10)
    assert player.score == 10


def test_two_events_with_the_same_points_both_count(player: Player) -> None:
    for _ in range(2):
        add_points(uuid4(), player.pk, 10)
    assert player.score == 20


def test_the_same_event_with_other_points_is_an_error(player: Player) -> None:
    event = uuid4()
    add_points(event, player.pk, 10)
    with pytest.raises(ValueError, match="has given 10 points before"):
        add_points(event, player.pk, 11)
    assert player.score == 10


def test_a_player_who_is_not_there_is_an_error() -> None:
    with pytest.raises(IntegrityError):
        add_points(uuid4(), 0, 10)


def test_the_newest_price_stays_in_whatever_order_they_arrive() -> None:
    newest = Decimal("12.50")
    for version in (1, 3, 2, 1):
        set_price("tea", newest if version == 3 else Decimal(version), version)
    assert Price.objects.get(product="tea").price == newest


def test_the_newest_price_stays_when_they_arrive_at_once() -> None:
    versions = iter(range(1, 9))

    def deliver() -> None:
        version = next(versions)
        set_price("pot", Decimal(version), version)

    race(deliver)
    assert Price.objects.get(product="pot").version == 8
