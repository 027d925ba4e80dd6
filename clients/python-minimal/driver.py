"""The driver of the smallest client; tests/conformance_clients/DRIVER.md says how one works.

Features that the client lacks are not declared, and not emulated here.
"""

import inspect
import json
import random
import struct
import sys
import time

import zmq
from minimal import (
    ACK,
    BYE,
    CREDIT,
    DELIVER,
    DONE,
    OPEN_CONSUMER,
    OPEN_PRODUCER,
    PUBLISH,
    RECEIPT,
    REQUEST,
    RESULT,
    Connection,
    opened,
)

CREDIT_MESSAGES, CREDIT_BYTES = 1000, 1 << 20
CLOSE = 6
TIMEOUT_MS = 10_000


class Handle:
    """A producer or consumer: each has a connection of its own, for the client reads one answer at a time."""

    def __init__(self, endpoint, header, timeout_ms):
        self.there, self.answer = opened(connected(endpoint, timeout_ms), {1: 1, 2: 1} | header)
        self.sequence = self.answer.get(5, 0)
        self.waiting = []  # messages that arrived and were not asked for yet

    def take(self, timeout_ms):
        """Wait for a delivery and cut it into (offset, payload, attempt)."""
        header, (lengths, payloads, *_) = patient(self.there, timeout_ms).receive(DELIVER)
        self.there.send({0: CREDIT, 2: 1, 11: header[7], 12: len(lengths) + len(payloads)})
        at = 0
        for offset, (length,) in enumerate(struct.iter_unpack("<I", lengths), header[6]):
            self.waiting.append((offset, payloads[at : at + length], header.get(10, 1)))
            at += length


def connected(endpoint, timeout_ms):
    """Connect, and wait for the answer as long as the client does."""
    return patient(Connection(endpoint), timeout_ms)


def patient(connection, timeout_ms):
    """Let a connection wait this long for the next answer."""
    connection.socket.setsockopt(zmq.RCVTIMEO, max(0, int(timeout_ms)))
    return connection


class Driver:
    def __init__(self):
        self.clients, self.handles, self.receipts = {}, {}, {}

    def hello(self):
        return {
            "protocol": 1,
            "language": "python-minimal",
            "client": "python-minimal",
            "capabilities": ["attempts", "moved"],
        }

    def connect(self, client, endpoints, timeout_ms=TIMEOUT_MS):
        self.clients[client] = endpoints[0], connected(endpoints[0], timeout_ms)

    def admin(self, client, operation, arguments, timeout_ms=TIMEOUT_MS):
        connection = patient(self.clients[client][1], timeout_ms)
        arguments = {"dispatch": "reliable"} | arguments
        connection.send({0: REQUEST, 1: 1, 30: operation, 24: arguments})
        header, _ = connection.receive(RESULT)
        if header[0] != RESULT:
            raise SystemExit(f"{header[16]}: {header[17]} ({header[18]})")
        return {"result": {"topic": arguments["topic"], "strategy": arguments["dispatch"], "durability": ""}}

    def producer(self, client, producer, topic, timeout_ms=TIMEOUT_MS):
        header = {0: OPEN_PRODUCER, 3: topic, 25: random.getrandbits(63) | 1}
        self.handles[producer] = handle = Handle(self.clients[client][0], header, timeout_ms)
        return {"next_sequence": handle.sequence}

    def publish(self, producer, receipt, message, timeout_ms=TIMEOUT_MS):
        handle = self.handles[producer]
        header = {0: PUBLISH, 2: 1, 5: handle.sequence}
        told = patient(handle.there, timeout_ms).ask(
            header, RECEIPT, body=[bytes.fromhex(message["payload"])]
        )
        handle.sequence += 1
        self.receipts[receipt] = told[27][1]

    def receipt(self, receipt, timeout_ms=0):  # noqa: ARG002 (`publish` has waited)
        return {"offset": self.receipts.pop(receipt), "count": 1, "duplicate": None}

    def consumer(self, client, consumer, topic, subscription, type, start="latest", timeout_ms=TIMEOUT_MS):
        header = {0: OPEN_CONSUMER, 3: topic, 4: subscription, 28: type, 26: start}
        header |= {11: CREDIT_MESSAGES, 12: CREDIT_BYTES}
        self.handles[consumer] = handle = Handle(self.clients[client][0], header, timeout_ms)
        return {"position": handle.answer[6]}

    def receive(self, consumer, max=1, timeout_ms=TIMEOUT_MS):
        handle, until = self.handles[consumer], time.monotonic() + timeout_ms / 1000
        while len(handle.waiting) < max:
            try:
                handle.take((until - time.monotonic()) * 1000)
            except zmq.Again:
                break
        taken, handle.waiting = handle.waiting[:max], handle.waiting[max:]
        told = [
            {"offset": at, "payload": payload.hex(), "attempt": attempt} for at, payload, attempt in taken
        ]
        return {"messages": told}

    def ack(self, consumer, offsets):
        for offset in offsets:
            self.handles[consumer].there.send({0: ACK, 2: 1, 13: [offset, offset + 1]})

    def close(self, client=None, producer=None, consumer=None, timeout_ms=TIMEOUT_MS):
        if client is not None:
            connection = self.clients.pop(client)[1]
        else:
            connection = self.handles.pop(producer or consumer).there
            patient(connection, timeout_ms).ask({0: CLOSE, 1: 2, 2: 1}, DONE)
        connection.send({0: BYE})
        connection.socket.close(300)


def called(method, given):
    """Call a method with those arguments that it has."""
    names = inspect.signature(method).parameters
    return method(**{key: value for key, value in given.items() if key in names}) or {}


def answer(driver, line):
    """Carry out a command; the client ends the program with "code: text (action)" where something is refused."""
    command = json.loads(line)
    number, name = command.pop("id"), command.pop("do")
    given = {key: value for key, value in command.items() if value is not None}
    try:
        if name not in vars(Driver):
            raise SystemExit(f"unsupported: this driver does not know the command {name!r} (fix)")
        return {"id": number, "ok": called(getattr(driver, name), given)}
    except zmq.Again:
        told = ("timeout", "retry", "no answer in time")
    except SystemExit as ended:
        code, _, rest = str(ended).partition(": ")
        text, _, action = rest.removesuffix(")").rpartition(" (")
        told = (code, action, text)
    except Exception as error:  # noqa: BLE001 (whatever it is, the test is to be told)
        told = ("driver-failed", "stop", f"{type(error).__name__}: {error}")
    return {"id": number, "error": dict(zip(("code", "action", "text"), told, strict=True))}


if __name__ == "__main__":
    driver = Driver()
    for line in sys.stdin:
        print(json.dumps(answer(driver, line)), flush=True)
    for handle in driver.handles.values():
        handle.there.send({0: BYE})
