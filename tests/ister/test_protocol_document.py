"""Tests of PROTOCOL.md against the code: its tables, and its worked example byte for byte."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ister import bodies, wire
from ister.clientsession import TRANSITIONS as SESSION_TRANSITIONS
from ister.errors import CODES
from ister.transport.session import HANDLE_FRAMES, HANDLE_TABLE, State
from ister.wire import Column, Key, Limit, Type

DOCUMENT = Path(__file__).parents[2] / "ister" / "transport" / "PROTOCOL.md"
BEGIN = "<!-- example: begin (checked by tests/ister/test_protocol_document.py) -->\n"
END = "<!-- example: end -->\n"

Step = tuple[str, str, list[bytes]]


def _step(way: str, header: wire.Header, *body: bytes) -> Step:
    kind = header[Key.TYPE]
    name = next(name for name, value in vars(Type).items() if value == kind)
    return way, name, [wire.encode_header(header), *body]


def worked_example() -> list[Step]:
    """Return the conversation of section 13."""
    session = bytes(range(16))
    keyed = [b"paid", b"sent"]
    topic = {"topic": "orders", "strategy": "reliable", "durability": "fsync"}
    return [
        _step(">", {Key.TYPE: Type.HELLO, Key.VERSION: [1], Key.CLIENT: "example"}),
        _step(
            "<",
            {
                Key.TYPE: Type.WELCOME,
                Key.VERSION: 1,
                Key.SESSION: session,
                Key.BOOT: 7,
                Key.LIMITS: {Limit.MESSAGE_BYTES_MAX: 1 << 20, Limit.BATCHES_IN_FLIGHT_MAX: 64},
                Key.HEARTBEAT: 5000,
                Key.RESUMED: False,
            },
        ),
        _step(
            ">",
            {
                Key.TYPE: Type.REQUEST,
                Key.REF: 1,
                Key.OPERATION: "topic.create",
                Key.ARGUMENTS: {"topic": "orders", "dispatch": "reliable"},
            },
        ),
        _step("<", {Key.TYPE: Type.RESULT, Key.REF: 1}, wire.encode_result(topic)),
        _step(
            ">",
            {
                Key.TYPE: Type.OPEN_PRODUCER,
                Key.REF: 2,
                Key.HANDLE: 1,
                Key.TOPIC: "orders",
                Key.PRODUCER: 0x1122334455667788,
                Key.SEQUENCE: 0,
            },
        ),
        _step(
            "<",
            {
                Key.TYPE: Type.OPENED,
                Key.REF: 2,
                Key.HANDLE: 1,
                Key.SEQUENCE: 0,
                Key.BYTES: 8 << 20,
                Key.STRATEGY: "reliable",
            },
        ),
        _step(">", {Key.TYPE: Type.PUBLISH, Key.HANDLE: 1, Key.SEQUENCE: 0}, b"hello"),
        _step(
            ">",
            {Key.TYPE: Type.PUBLISH, Key.HANDLE: 1, Key.SEQUENCE: 1, Key.COLUMNS: Column.KEYS},
            bodies.pack_lengths(keyed),
            b"".join(keyed),
            bodies.pack_column([b"k1", b""]),
        ),
        _step("<", {Key.TYPE: Type.RECEIPT, Key.HANDLE: 1, Key.RECEIPTS: [0, 0, 1, 1]}),
        _step(
            ">",
            {
                Key.TYPE: Type.OPEN_CONSUMER,
                Key.REF: 3,
                Key.HANDLE: 2,
                Key.TOPIC: "orders",
                Key.SUBSCRIPTION: "billing",
                Key.SUBSCRIPTION_TYPE: "shared",
                Key.MESSAGES: 1000,
                Key.BYTES: 1 << 20,
                Key.START: "earliest",
            },
        ),
        _step(
            "<",
            {Key.TYPE: Type.OPENED, Key.REF: 3, Key.HANDLE: 2, Key.OFFSET: 0, Key.STRATEGY: "reliable"},
        ),
        _step(
            "<",
            {
                Key.TYPE: Type.DELIVER,
                Key.HANDLE: 2,
                Key.OFFSET: 0,
                Key.COUNT: 1,
                Key.TIMESTAMPS: [1, 1767225600000],
                Key.ATTEMPT: 1,
            },
            bodies.pack_lengths([b"hello"]),
            b"hello",
        ),
        _step(
            "<",
            {
                Key.TYPE: Type.DELIVER,
                Key.HANDLE: 2,
                Key.OFFSET: 1,
                Key.COUNT: 2,
                Key.TIMESTAMPS: [2, 1767225600001],
                Key.ATTEMPT: 1,
                Key.COLUMNS: Column.KEYS,
            },
            bodies.pack_lengths(keyed),
            b"".join(keyed),
            bodies.pack_column([b"k1", b""]),
        ),
        _step(">", {Key.TYPE: Type.ACK, Key.HANDLE: 2, Key.RANGES: [0, 3], Key.REF: 4}),
        _step("<", {Key.TYPE: Type.DONE, Key.REF: 4}),
        _step(">", {Key.TYPE: Type.CREDIT, Key.HANDLE: 2, Key.MESSAGES: 3, Key.BYTES: 35}),
        _step(">", {Key.TYPE: Type.BYE}),
    ]


def rendered(steps: list[Step]) -> str:
    """Write the conversation as the document shows it."""
    lines = ["```"]
    for way, name, frames in steps:
        lines.append(f"{way} {name}")
        lines.extend(f"    {frame.hex(' ')}" for frame in frames)
    return "\n".join([*lines, "```"]) + "\n"


def test_the_worked_example_is_what_the_codec_writes() -> None:
    """The hex in the document is what the codec encodes."""
    text = DOCUMENT.read_text()
    shown = text[text.index(BEGIN) + len(BEGIN) : text.index(END)]
    assert shown == rendered(worked_example())


def test_the_worked_example_is_legal() -> None:
    """Every header of the example passes the strict decoder, and every batch is valid."""
    for _way, name, frames in worked_example():
        header = wire.decode_header(frames[0])
        if name in ("PUBLISH", "DELIVER") and len(frames) > 2:
            bodies.check_batch(
                frames[1:],
                header.get(Key.COLUMNS, 0),
                message_bytes_max=1 << 20,
                batch_bytes_max=1 << 20,
            )


@pytest.mark.parametrize(
    ("section", "names"),
    [("## 3 Header keys", Key), ("## 4 Frames", Type), ("## 12 Limits", Limit)],
    ids=["keys", "types", "limits"],
)
def test_the_tables_hold_every_number_of_the_codec(section: str, names: type) -> None:
    """The document has every key, type and limit of the code."""
    text = DOCUMENT.read_text().split(section, 1)[1].split("\n## ", 1)[0]
    listed = {name: int(number) for number, name in re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", text, re.M)}
    assert listed == {name: value for name, value in vars(names).items() if name.isupper()}


def test_required_keys_are_the_ones_the_codec_requires() -> None:
    """The bold keys of the table of frames are those that the decoder requires."""
    text = DOCUMENT.read_text().split("## 4 Frames", 1)[1].split("\n## ", 1)[0]
    for number, keys in re.findall(r"^\| (\d+) \| [A-Z_]+ \| ([^|]*) \|", text, re.M):
        bold = " ".join(re.findall(r"\*\*([A-Z_ ]+)\*\*", keys)).split()
        assert {getattr(Key, name) for name in bold} == wire.REQUIRED[int(number)], number


@pytest.mark.requirement("11.1-2")
def test_every_error_code_is_documented_with_its_action() -> None:
    """The document has every code that a broker may send, and its action."""
    text = DOCUMENT.read_text().split("## 11 Errors", 1)[1].split("\n## ", 1)[0]
    listed: dict[str, str] = {}
    for codes, action in re.findall(r"^\| (`[^|]*) \| ([a-z ]+) \|", text, re.M):
        for code in re.findall(r"`([a-z-]+)`", codes):
            listed[code] = action
    assert listed.keys() == CODES.keys()
    for code, action in CODES.items():
        assert action in listed[code], code


HANDLE_WORDS = {
    "open": {"opens", "opens again"},
    "in-use": {"`handle-in-use`"},
    "unknown": {"`unknown-handle`"},
    "publish": {"publishes"},
    "close": {"closes"},
    "credit": {"gives credit"},
    "ack": {"acknowledges"},
    "ignore": {"ignored"},
}


@pytest.mark.requirement("6.1-1")
def test_the_table_of_a_handles_states_is_the_brokers() -> None:
    """The table of which frame is allowed in which state is what the worker does."""
    text = DOCUMENT.read_text().split("### 6.1 ", 1)[1].split("\n### ", 1)[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]
    assert rows[0][1:] == ["absent", "opening", "a producer's", "a consumer's"]
    listed = {row[0]: row[1:] for row in rows[2:]}
    states: tuple[State, ...] = ("absent", "opening", "producer", "consumer")
    kinds = {name: value for name, value in vars(Type).items() if name.isupper() and value in HANDLE_FRAMES}
    assert listed.keys() == kinds.keys()
    for name, kind in kinds.items():
        for state, cell in zip(states, listed[name], strict=True):
            assert cell in HANDLE_WORDS[HANDLE_TABLE[state, kind]], (name, state)


@pytest.mark.requirement("7.7-1")
def test_the_table_of_a_sessions_states_is_the_clients() -> None:
    """The states and transitions in the document are those of the Python client."""
    text = DOCUMENT.read_text().split("### 7.7 ", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| ([a-z ]+) \| ([^|]*) \| ([a-z]+) \|", text, re.M)
    ways = {(begin, end) for (begin, _), end in SESSION_TRANSITIONS.items()}
    listed = {(begin, end) for begin, _, end in rows if begin != "any but ended"}
    assert listed | {(begin, "ended") for begin, _ in SESSION_TRANSITIONS} == ways


if __name__ == "__main__":  # writes the example into the document
    whole = DOCUMENT.read_text()
    start, stop = whole.index(BEGIN) + len(BEGIN), whole.index(END)
    DOCUMENT.write_text(whole[:start] + rendered(worked_example()) + whole[stop:])
