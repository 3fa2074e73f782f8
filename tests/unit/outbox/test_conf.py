"""Settings: typed defaults, read at each use."""

from __future__ import annotations

import inspect
from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from outbox.conf import OutboxSettings, conf

NAMES = [name for name in vars(OutboxSettings) if name.isupper() and name != "PREFIX"]


def test_the_defaults() -> None:
    assert conf.BATCH_SIZE == 500
    poll_interval: timedelta = conf.POLL_INTERVAL
    assert poll_interval == timedelta(milliseconds=36)
    claim_timeout: timedelta = conf.CLAIM_TIMEOUT
    assert claim_timeout <= timedelta(seconds=30)


@pytest.mark.parametrize("name", NAMES)
def test_each_setting_overrides_its_default_at_once(name: str, settings: Any) -> None:
    value = getattr(conf, name)
    if isinstance(value, timedelta):
        for given, read in ((7, timedelta(seconds=7)), (timedelta(days=1), timedelta(days=1))):
            setattr(settings, f"OUTBOX_{name}", given)
            assert getattr(conf, name) == read
    else:
        setattr(settings, f"OUTBOX_{name}", 7)
        assert getattr(conf, name) == 7
    delattr(settings, f"OUTBOX_{name}")
    assert getattr(conf, name) == value


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["7", None, 0, -1, True, float("nan"), float("inf")])
def test_a_setting_of_the_wrong_kind_is_refused_by_its_name(
    name: str, value: Any, settings: Any
) -> None:
    setattr(settings, f"OUTBOX_{name}", value)
    with pytest.raises(ImproperlyConfigured, match=f"OUTBOX_{name} must be"):
        getattr(conf, name)


@pytest.mark.parametrize("value", [timedelta.max, 1e300])
def test_a_duration_beyond_any_calendar_is_refused(value: Any, settings: Any) -> None:
    settings.OUTBOX_RETENTION = value
    with pytest.raises(ImproperlyConfigured, match="OUTBOX_RETENTION must be at most"):
        conf.RETENTION  # noqa: B018


def test_each_setting_is_documented_where_it_is_declared() -> None:
    source = inspect.getsource(OutboxSettings)
    for name in NAMES:
        declared = source.index(f"    {name}: ")
        following = source[declared:].split("\n", 1)[1].lstrip()
        assert following.startswith('"""'), name
