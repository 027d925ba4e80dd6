"""Strict CBOR (RFC 8949): no tags, no indefinite lengths, no duplicate keys, a bounded depth, nothing trailing.

Knows nothing of what is decoded: see `wire.py` and `bodies.py`. Pure. Whatever bytes come in, the only error that
comes out is `RemoteProtocolError`.
"""

from __future__ import annotations

from typing import Any, Final

import cbor2

from ister.errors import RemoteProtocolError

U64_MAX: Final = (1 << 64) - 1


def decode(data: bytes, depth_max: int) -> Any:
    """Decode one item that may nest `depth_max` levels; raises `RemoteProtocolError`."""
    try:
        value = cbor2.loads(data, max_depth=depth_max, allow_indefinite=False, allow_duplicate_keys=False)
        if cbor2.dumps(value) == data:
            # shortest form throughout: nothing trailing, and no tag except those that give another type
            return value
    except Exception as error:  # noqa: BLE001  (whatever the decoder finds wrong with a peer's bytes is the peer's)
        raise RemoteProtocolError(f"not strict CBOR: {error}") from None
    if _skip_item(data, 0, depth_max) != len(data):  # a valid but longer form: check every byte
        raise RemoteProtocolError("not strict CBOR: bytes after the end")
    return value


def _skip_item(data: bytes, at: int, depth: int) -> int:
    """Return the index after the item at `at`; raise if it is not strict CBOR (RFC 8949, section 3)."""
    if depth < 0:
        raise RemoteProtocolError("not strict CBOR: too deep")
    try:
        major, low = data[at] >> 5, data[at] & 31
    except IndexError:
        raise RemoteProtocolError("not strict CBOR: ends too early") from None
    at += 1
    if low < 24:
        number = low
    elif low < 28:
        width = 1 << (low - 24)
        number = int.from_bytes(data[at : at + width])
        at += width
    else:
        raise RemoteProtocolError("not strict CBOR: indefinite or reserved length")
    if at > len(data):
        raise RemoteProtocolError("not strict CBOR: ends too early")
    if major == 6:
        raise RemoteProtocolError("not strict CBOR: tags are not allowed")
    if major in (2, 3):
        at += number
    elif major in (4, 5):
        for _ in range(number * (major - 3)):
            at = _skip_item(data, at, depth - 1)
    if at > len(data):
        raise RemoteProtocolError("not strict CBOR: ends too early")
    return at


def is_plain(value: Any) -> bool:
    """Return whether a value holds nothing but maps, lists, text, bytes, numbers, booleans and null."""
    if type(value) is dict:
        return all(type(k) in (str, int) and is_plain(v) for k, v in value.items())
    if type(value) is list:
        return all(map(is_plain, value))
    if type(value) is int:
        return bool(-(1 << 63) <= value <= U64_MAX)
    return value is None or type(value) in (str, bytes, bool, float)
