"""The JSON notation of frames in vectors, which README.md beside this file describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import cbor2

from ister import bodies, wire
from ister.errors import RemoteProtocolError
from ister.wire import Column, Key, Type

EXACT_MAX: Final = (1 << 53) - 1  # above this, JSON readers of some languages round
FRAME_NAMES: Final = {value: name for name, value in vars(Type).items() if name.isupper()}
KEY_NAMES: Final = {value: name for name, value in vars(Key).items() if name.isupper()}
VARIES: Final = ("SESSION", "BOOT", "TIMESTAMPS", "TEXT", "ENDPOINT", "LIMITS", "HEARTBEAT")


def to_json(value: Any) -> Any:
    """Return a CBOR value in JSON: a large integer as {"uint": "..."} or {"nint": "..."}, bytes as {"bytes": "hex"}."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        if -EXACT_MAX <= value <= EXACT_MAX:
            return value
        return {"uint" if value > 0 else "nint": str(value)}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, list):
        return [to_json(each) for each in value]
    if isinstance(value, dict):
        return {str(key): to_json(each) for key, each in value.items()}
    return {"float": repr(value)}


def from_json(value: Any, *, numbered: bool = False) -> Any:
    """Return what `to_json` was given; `numbered`: the keys of this map are integers."""
    if isinstance(value, list):
        return [from_json(each) for each in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        (name, inside), *_ = value.items()
        if name in ("uint", "nint") and isinstance(inside, str):
            return int(inside)
        if name == "bytes":
            return bytes.fromhex(inside)
        if name == "float" and isinstance(inside, str):
            return float(inside)
    if numbered:
        return {int(key): from_json(each, numbered=int(key) == Key.LIMITS) for key, each in value.items()}
    return {key: from_json(each) for key, each in value.items()}


def header_to_json(header: wire.Header) -> dict[str, Any]:
    """Return a header in JSON, its keys as decimal numbers, in its order."""
    return {str(key): to_json(value) for key, value in header.items()}


def messages_of(frames: Sequence[bytes], columns: int) -> list[dict[str, Any]]:
    """Return the messages of a batch in JSON."""
    if len(frames) == 1:
        return [{"payload": frames[0].hex()}]
    payloads = bodies.split_payloads(frames[0], frames[1])
    messages: list[dict[str, Any]] = [{"payload": payload.hex()} for payload in payloads]
    rest = list(frames[2:])
    if columns & Column.KEYS:
        for message, key in zip(messages, bodies.split_column(rest.pop(0), len(messages)), strict=True):
            if key:
                message["key"] = key.hex()
    if columns & Column.ATTRIBUTES:
        for message, item in zip(messages, bodies.split_column(rest.pop(0), len(messages)), strict=True):
            if item:
                message["attributes"] = bodies.decode_attributes(item)
    if columns & Column.DELIVER_AT:
        for message, time in zip(messages, bodies.split_times(rest.pop(0), len(messages)), strict=True):
            if time:
                message["deliver_at_ms"] = time
    return messages


def described(parts: Sequence[bytes]) -> dict[str, Any]:
    """Return a message in JSON: its frames in hex, and their contents where they can be read."""
    found: dict[str, Any] = {"frames": [part.hex() for part in parts]}
    try:
        header = wire.decode_header(parts[0])
    except RemoteProtocolError:
        return {"frame": None, **found}
    found["header"] = header_to_json(header)
    kind = header[Key.TYPE]
    if kind in (Type.PUBLISH, Type.DELIVER):
        try:
            found["messages"] = messages_of(parts[1:], header.get(Key.COLUMNS, 0))
        except RemoteProtocolError:
            pass
    elif kind == Type.RESULT:
        found["result"] = to_json(cbor2.loads(parts[1]))
    return {"frame": FRAME_NAMES[kind], **found}
