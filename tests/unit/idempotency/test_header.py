"""One key, however a client writes it; and no key out of what could be two."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempotency.header import MalformedKey, parse

UUID = "8e03978e-40d5-43dd-bc93-6894a57f9324"
PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255)


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (f'"{UUID}"', UUID),
        (UUID, UUID),
        ("a1b2-token", "a1b2-token"),
        ("12345", "12345"),
        (" \t abc \t ", "abc"),
        ('"a b"', "a b"),
        ('" a "', " a "),
        ('"a,b"', "a,b"),
        (r'"a\"b\\c"', r'a"b\c'),
        ('"abc";x', "abc"),
        ('"abc"; x=1;y="z";q=?1;d=-1.5;b=:YQ==:;t=to/ken;at=@1;s=%"f%c3%bc"', "abc"),
        ("token;x=1", "token;x=1"),
        (f'"{"a" * 255}"', "a" * 255),
    ],
)
def test_key_of_a_header(value: str, key: str) -> None:
    assert parse(value) == key


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        '""',
        "a,b",
        '"a","b"',
        '"a", "a"',
        "a b",
        '"abc',
        'abc"',
        r'"a\bc"',
        r"a\b",
        '"a\tb"',
        '"a\nb"',
        "a\nb",
        "é",
        '"é"',
        "\x7f",
        '"abc";X=1',
        '"abc";x=',
        '"abc" ;x',
        '"abc"x',
        "a" * 256,
        f'"{"a" * 256}"',
        f'"abc";{"x" * 1024}',
    ],
)
def test_malformed_header(value: str) -> None:
    with pytest.raises(MalformedKey) as caught:
        parse(value)
    if len(value) > 3:
        assert value not in str(caught.value)


@given(PRINTABLE)
def test_quoted_key_comes_back(key: str) -> None:
    quoted = key.replace("\\", r"\\").replace('"', r"\"")
    assert parse(f'"{quoted}"') == key


@given(st.text(st.sampled_from('";=a1\\ ,:%@?*.'), max_size=60))
def test_any_value_is_a_key_or_is_refused(value: str) -> None:
    with contextlib.suppress(MalformedKey):
        assert 1 <= len(parse(value)) <= 255
