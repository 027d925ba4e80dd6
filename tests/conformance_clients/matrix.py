"""The messages of the matrix, and the table of which client understood which. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

# What a message may have, and the capability that a client needs for it.
MEMBERS: Final = {
    "payload": None,
    "key": "keys",
    "attributes": "attributes",
    "deliver_at_ms": "delivery-time",
    "timestamp_ms": "timestamps",
    "attempt": "attempts",
}
LONG_AGO_MS: Final = 1_000_000_000_000  # a delivery time in the past: the message does not wait

_LONE: Final[list[dict[str, Any]]] = [
    {"payload": b""},
    {"payload": b"hello"},
    {"payload": bytes(range(256))},
    {"payload": b"\x00"},
    {"payload": b"", "key": b"only a key"},
    {"payload": b"", "attributes": {"only": "attributes"}},
    {"payload": "Grüße, 世界, 🌍, \x00, \u200d".encode()},
    {"payload": b"with a key", "key": b"k"},
    {"payload": b"a key of any bytes", "key": b"\x00\xff\xfe/\n"},
    {"payload": b"a long key", "key": b"k" * 300},
    {"payload": b"attributes", "attributes": {"a": "1", "b": "2"}},
    {
        "payload": b"unicode",
        "attributes": {"größe": "ü", "世界": "🌍", "": "", "nul": "\x00", "quote": '"\\\n'},
    },
    {"payload": b"many", "attributes": {f"name-{number:03}": "x" * number for number in range(60)}},
    {"payload": b"a long attribute", "attributes": {"long": "ä" * 5_000}},
    {"payload": b"a time", "deliver_at_ms": LONG_AGO_MS},
    {"payload": b"all", "key": b"k", "attributes": {"a": "b"}, "deliver_at_ms": LONG_AGO_MS + 1},
    {"payload": b"x" * 70_000},
    {"payload": bytes(200_000)},
]
_BATCHES: Final[list[list[dict[str, Any]]]] = [
    [{"payload": b"%d" % number} for number in range(300)],
    [{"payload": b""} for _ in range(3)],
    [{"payload": b"%07d" % number} for number in range(100)],
    [{"payload": b"a", "key": b"k1"}, {"payload": b"b"}, {"payload": b"", "key": b"k2"}],
    [
        {"payload": b"a"},
        {"payload": b"b", "attributes": {"größe": "ü"}},
        {"payload": b"", "attributes": {"": "x"}},
    ],
    [{"payload": b"now"}, {"payload": b"then", "deliver_at_ms": LONG_AGO_MS}],
    [
        {"payload": b"1", "key": b"k", "attributes": {"a": "1"}, "deliver_at_ms": LONG_AGO_MS},
        {"payload": b"2", "key": b"k", "attributes": {"a": "2"}, "deliver_at_ms": LONG_AGO_MS + 5},
    ],
    [{"payload": b"alone in a batch"}],
    [{"payload": bytes([number]) * 10_000} for number in range(20)],
]
# messages that are published together
GROUPS: Final[list[list[dict[str, Any]]]] = [*([each] for each in _LONE), *_BATCHES]
MESSAGES: Final[list[dict[str, Any]]] = [message for group in GROUPS for message in group]


def as_sent(message: Mapping[str, Any], can: Iterable[str]) -> dict[str, Any]:
    """Return a message as a driver is told to publish it, without what its client lacks."""
    able = {None, *can}
    return {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in message.items()
        if MEMBERS[name] in able
    }


def difference(expected: Mapping[str, Any], shown: Mapping[str, Any], can: Iterable[str]) -> str | None:
    """Return how a received message differs from the expected one, in what the client can show."""
    able = {None, *can}
    for name, capability in MEMBERS.items():
        if capability not in able:
            continue
        want = expected.get(name) or ({} if name == "attributes" else "" if name == "payload" else None)
        if shown.get(name) != want:
            return f"{name} is {str(shown.get(name))[:80]!r}, not {str(want)[:80]!r}"
    return None


def left_out(can: Iterable[str]) -> list[str]:
    """Return which parts of a message a client cannot publish or show."""
    return [name for name, capability in MEMBERS.items() if capability is not None and capability not in can]


def table(cells: Mapping[tuple[str, str], str], notes: Mapping[str, list[str]]) -> list[str]:
    """Return the lines of the table: publishers in rows, consumers in columns."""
    publishers = list(dict.fromkeys(publisher for publisher, _ in cells))
    consumers = list(dict.fromkeys(consumer for _, consumer in cells))
    first = max(map(len, ["publishes \\ consumes", *publishers]))
    widths = [max(len(name), 7) for name in consumers]
    head = "publishes \\ consumes".ljust(first)
    lines = [
        "  ".join(
            [head, *(name.ljust(width) for name, width in zip(consumers, widths, strict=True))]
        ).rstrip()
    ]
    for publisher in publishers:
        words = [cells.get((publisher, name), "-") for name in consumers]
        row = [word.ljust(width) for word, width in zip(words, widths, strict=True)]
        lines.append("  ".join([publisher.ljust(first), *row]).rstrip())
    lines += [f"{name} has no {', '.join(missing)}" for name, missing in notes.items() if missing]
    return lines
