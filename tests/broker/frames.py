"""Valid frames of clients, and broken ones, for the fuzzing tests."""

from __future__ import annotations

from random import Random
from typing import Any

import cbor2

from ister.wire import Key, Type
from tests.raw_client import batch


def mutated(random: Random, frames: list[bytes]) -> list[bytes]:
    """Return frames with something changed for the worse."""
    frames = list(frames)
    at = random.randrange(len(frames))
    frame = bytearray(frames[at])
    what = random.randrange(7)
    if what == 0 and frame:
        frame[random.randrange(len(frame))] ^= 1 << random.randrange(8)
    elif what == 1:
        del frame[random.randrange(len(frame) + 1) :]
    elif what == 2:
        frame += random.randbytes(random.randrange(1, 9))
    elif what == 3:
        frames.insert(at, random.randbytes(random.randrange(20)))
    elif what == 4:
        del frames[at]
        return frames or [b""]
    elif what == 5:
        frame[:] = random.randbytes(random.randrange(60))
    else:
        position = random.randrange(len(frame) + 1)
        frame[position:position] = random.randbytes(random.randrange(1, 4))
    frames[min(at, len(frames) - 1)] = bytes(frame)
    return frames


def valid_frame(random: Random, topic: str) -> list[bytes]:
    """Return some frame that a client may send."""
    handle, ref = random.randrange(4), random.randrange(1 << 20)
    some: list[dict[int, Any]] = [
        {Key.TYPE: Type.HELLO, Key.VERSION: [1]},
        {Key.TYPE: Type.PING, Key.REF: ref},
        {
            Key.TYPE: Type.OPEN_PRODUCER,
            Key.REF: ref,
            Key.HANDLE: handle,
            Key.TOPIC: topic,
            Key.PRODUCER: 1 + handle,
        },
        {
            Key.TYPE: Type.OPEN_CONSUMER,
            Key.REF: ref,
            Key.HANDLE: handle,
            Key.TOPIC: topic,
            Key.SUBSCRIPTION: f"fuzz-{handle}",
            Key.SUBSCRIPTION_TYPE: random.choice(["exclusive", "shared", "failover"]),
            Key.START: random.choice(["earliest", "latest", 0, 1 << 60]),
            Key.MESSAGES: random.choice([0, 10, 1 << 63]),
            Key.BYTES: random.choice([0, 1000, 1 << 63]),
            Key.ARGUMENTS: random.choice([{}, {"drop": "newest"}, {"ack_timeout_ms": 10}]),
        },
        {Key.TYPE: Type.CREDIT, Key.HANDLE: handle, Key.MESSAGES: 5, Key.BYTES: 500},
        {Key.TYPE: Type.ACK, Key.HANDLE: handle, Key.RANGES: [0, random.randrange(1, 50)], Key.REF: ref},
        {
            Key.TYPE: Type.NACK,
            Key.HANDLE: handle,
            Key.RANGES: [0, 3],
            Key.DELAY: random.choice([0, 5, 1 << 62]),
        },
        {Key.TYPE: Type.ACK_UNTIL, Key.HANDLE: handle, Key.OFFSET: random.choice([0, 7, (1 << 64) - 1])},
        {Key.TYPE: Type.CLOSE, Key.REF: ref, Key.HANDLE: handle},
        {Key.TYPE: Type.REQUEST, Key.REF: ref, Key.OPERATION: "topic.show", Key.ARGUMENTS: {"topic": topic}},
        {Key.TYPE: Type.REQUEST, Key.REF: ref, Key.OPERATION: "topic.list", Key.ARGUMENTS: {"limit": 2}},
        {Key.TYPE: Type.REQUEST, Key.REF: ref, Key.OPERATION: "status"},
        {
            Key.TYPE: Type.REQUEST,
            Key.REF: ref,
            Key.OPERATION: "subscription.create",
            Key.ARGUMENTS: {
                "topic": topic,
                "subscription": f"made-{handle}",
                "start": random.choice([0, "9" * 5000]),
            },
        },
        {Key.TYPE: Type.BYE},
    ]
    if random.random() < 0.3:
        publish = {Key.TYPE: Type.PUBLISH, Key.HANDLE: handle, Key.SEQUENCE: random.randrange(5)}
        return [cbor2.dumps(publish), *batch([random.randbytes(random.randrange(9)) for _ in range(3)])]
    return [cbor2.dumps(random.choice(some))]
