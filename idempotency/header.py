"""The ``Idempotency-Key`` header: a structured field (RFC 9651), or a bare value. Pure."""

from __future__ import annotations

import re

NAME = "Idempotency-Key"
LONGEST_VALUE = 1024
"""Bytes of the raw value."""
LONGEST_KEY = 255

_STRING = r'"(?:[\x20-\x21\x23-\x5B\x5D-\x7E]|\\["\\])*"'
_BARE_ITEM = rf"""(?:
    -?\d{{1,12}}\.\d{{1,3}} | -?\d{{1,15}}          # decimal, integer
    | {_STRING}
    | [A-Za-z*][A-Za-z0-9!\#$%&'*+\-.^_`|~:/]*      # token
    | :[A-Za-z0-9+/]*={{0,2}}:                      # byte sequence
    | \?[01]                                        # boolean
    | @-?\d{{1,15}}                                 # date
    | %"(?:[\x20-\x21\x23-\x24\x26-\x7E]|%[0-9a-f]{{2}})*"   # display string
)"""
_PARAMETER = rf"(?:;\x20*[a-z*][a-z0-9_\-.*]*(?:={_BARE_ITEM})?)"

ITEM = re.compile(rf"(?P<string>{_STRING}){_PARAMETER}*", re.VERBOSE)
"""A String with parameters, which are accepted and mean nothing."""

BARE = re.compile(r"[\x21\x23-\x2B\x2D-\x5B\x5D-\x7E]+")
"""Visible ASCII without the quote, the comma and the backslash.

A comma is what joins two lines of the header, and the rest starts a String that does not end.
"""


class MalformedKey(ValueError):
    """The header has no key; the text says why, without repeating the header."""


def parse(value: str) -> str:
    """Return the key of a header's raw value: ``"abc"`` and ``abc`` are the same key.

    Raises ``MalformedKey``.
    """
    if len(value) > LONGEST_VALUE:
        raise MalformedKey(f"{NAME} is longer than {LONGEST_VALUE} bytes.")
    value = value.strip(" \t")
    if item := ITEM.fullmatch(value):
        key = re.sub(r"\\(.)", r"\1", item["string"][1:-1])
    elif BARE.fullmatch(value):
        key = value
    else:
        raise MalformedKey(
            f"{NAME} must be given once, as a quoted string or as visible ASCII characters "
            "without quotes, commas and backslashes."
        )
    if not 1 <= len(key) <= LONGEST_KEY:
        raise MalformedKey(f"The key must have 1 to {LONGEST_KEY} characters, and has {len(key)}.")
    return key
