"""The driver of the Python client, and the reference for others: see tests/conformance_clients/DRIVER.md.

Commands come in as lines of JSON, answers go out the same way. A method here is a command of that name.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import signal
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import ister
from ister import bodies, wire
from ister.client import CLIENT_TEXT
from ister.errors import ConnectionLostError, IsterError, TimeoutExpiredError
from ister.message import Delivery
from ister.names import is_pattern
from ister.opening import producer_id

CAPABILITIES = [
    *("batch", "pipeline", "keys", "attributes", "delivery-time", "timestamps", "attempts", "named-producer"),
    *("batch-receive", "confirm", "nack", "ack-until", "extend", "reader", "seek", "priority", "force"),
    *("options", "credit", "window", "events", "admin", "request-reply", "moved", "reconnect", "heartbeat"),
    *("orderly-close", "cancel", "drop", "codec", "bench", "patterns", "dead-letters", "taken"),
]
TIMEOUT_MS = 10_000
EXACT_MAX = (1 << 53) - 1  # above this, JSON readers of some languages round
# operation: the client's method, the arguments that it takes by place, and the member its result is given as
OPERATIONS: dict[str, tuple[str, tuple[str, ...], str | None]] = {
    "topic.create": ("create_topic", ("topic",), None),
    "topic.update": ("update_topic", ("topic",), None),
    "topic.list": ("topics", (), "topics"),
    "topic.show": ("topic", ("topic",), None),
    "topic.delete": ("delete_topic", ("topic",), "deleted"),
    "subscription.create": ("create_subscription", ("topic", "subscription"), None),
    "subscription.update": ("update_subscription", ("topic", "subscription"), None),
    "subscription.list": ("subscriptions", ("topic",), "subscriptions"),
    "subscription.show": ("subscription", ("topic", "subscription"), None),
    "subscription.seek": ("seek", ("topic", "subscription", "to"), "position"),
    "subscription.explain": ("explain", ("topic", "subscription"), None),
    "subscription.unblock": ("unblock", ("topic", "subscription", "action"), "messages"),
    "subscription.delete": ("delete_subscription", ("topic", "subscription"), "deleted"),
    "status": ("status", (), None),
}


class UnsupportedError(Exception):
    """The driver does not know the command."""


class CancelledError(Exception):
    """The time after which a command is to be cancelled is over."""


def place(given: Any) -> Any:
    """Return a place as the client wants it."""
    if isinstance(given, str) and given.startswith("time:"):
        return datetime.fromtimestamp(int(given[5:]) / 1000, UTC)
    return given


def shown(message: ister.Message) -> dict[str, Any]:
    """Return a message as an answer."""
    return {
        "topic": message.topic,
        "offset": message.offset,
        "payload": message.payload.hex(),
        "key": None if message.key is None else message.key.hex(),
        "attributes": message.attributes,
        "timestamp_ms": message.timestamp,
        "deliver_at_ms": message.deliver_at,
        "attempt": message.attempt,
    }


def in_json(value: Any) -> Any:
    """Return a decoded value in the notation of tests/vectors/README.md."""
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, dict):
        return {str(key): in_json(each) for key, each in value.items()}
    if isinstance(value, int) and abs(value) > EXACT_MAX:
        return {"uint" if value > 0 else "nint": str(value)}
    if isinstance(value, float):
        return {"float": repr(value)}
    return [in_json(each) for each in value] if isinstance(value, list) else value


class Driver:
    """The objects that the test has named, and a method for each command."""

    def __init__(self) -> None:
        self.clients: dict[str, ister.Client] = {}
        self.producers: dict[str, ister.Producer] = {}
        self.consumers: dict[str, Any] = {}
        self.receipts: dict[str, Any] = {}
        self.held: dict[
            str, dict[tuple[str, int], ister.Message]
        ] = {}  # of each consumer, by topic and offset
        self.late: dict[str, Exception] = {}  # errors that came after messages had been taken

    def hello(self) -> dict[str, Any]:
        return {"protocol": 1, "language": "python", "client": CLIENT_TEXT, "capabilities": CAPABILITIES}

    def decode(self, frame: str) -> dict[str, Any]:
        return {"header": in_json(wire.decode_header(bytes.fromhex(frame)))}

    def decode_batch(self, columns: int, frames: list[str]) -> dict[str, Any]:
        count = len(frames[0]) // 8 if frames else 0
        header = {wire.Key.OFFSET: 0, wire.Key.COUNT: count, wire.Key.TIMESTAMPS: [count, 0]}
        header |= {wire.Key.COLUMNS: columns}
        delivery = Delivery(None, "", 0, header, [bytes.fromhex(frame) for frame in frames])
        told = [shown(message) for message in delivery.messages()]
        names = ("payload", "key", "attributes", "deliver_at_ms")
        return {
            "messages": [
                {name: each[name] for name in names if each[name] or name == "payload"} for each in told
            ]
        }

    def encode_batch(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        columns, body = 0, []
        payloads = [bytes.fromhex(each["payload"]) for each in messages]
        if any(each.get("key") for each in messages):
            columns |= wire.Column.KEYS
            body.append(bodies.pack_column([bytes.fromhex(each.get("key") or "") for each in messages]))
        if any(each.get("attributes") for each in messages):
            columns |= wire.Column.ATTRIBUTES
            body.append(
                bodies.pack_column(
                    [bodies.encode_attributes(each.get("attributes") or {}) for each in messages]
                )
            )
        if any(each.get("deliver_at_ms") for each in messages):
            columns |= wire.Column.DELIVER_AT
            body.append(bodies.pack_times([each.get("deliver_at_ms") or 0 for each in messages]))
        frames = [bodies.pack_lengths(payloads), b"".join(payloads), *body]
        return {"columns": columns, "frames": [frame.hex() for frame in frames]}

    def producer_id(self, topic: str, name: str) -> dict[str, Any]:
        return {"id": str(producer_id(topic, name))}

    # ---- clients

    def connect(self, client: str, endpoints: list[str], timeout_ms: int = TIMEOUT_MS) -> None:
        self.clients[client] = ister.connect(endpoints, timeout=timeout_ms / 1000)

    def drop(self, client: str) -> None:
        network = self.clients[client].network
        with network.lock:
            for connection in network.everywhere():
                connection.interrupted(ConnectionLostError("the test cut it"))
        network.settle()

    def close(
        self,
        client: str | None = None,
        producer: str | None = None,
        consumer: str | None = None,
        timeout_ms: int = TIMEOUT_MS,
    ) -> None:
        if client is not None:
            self.clients.pop(client).close()
        elif producer is not None:
            self.producers.pop(producer).close(timeout_ms / 1000)
        elif consumer is not None:
            self.held.pop(consumer, None)
            self.late.pop(consumer, None)
            self.consumers.pop(consumer).close(timeout_ms / 1000)

    def admin(
        self, client: str, operation: str, arguments: dict[str, Any], timeout_ms: int = TIMEOUT_MS
    ) -> dict[str, Any]:
        if operation not in OPERATIONS:
            raise UnsupportedError(f"the operation {operation!r}")
        method, by_place, member = OPERATIONS[operation]
        rest = {name: place(value) for name, value in arguments.items()}
        placed = [rest.pop(name) for name in by_place]
        result = getattr(self.clients[client], method)(*placed, timeout=timeout_ms / 1000, **rest)
        return {"result": result if member is None else {member: result}}

    # ---- publishing

    def producer(
        self,
        client: str,
        producer: str,
        topic: str,
        name: str | None = None,
        window_bytes: int | None = None,
        timeout_ms: int = TIMEOUT_MS,
    ) -> dict[str, Any]:
        made = self.clients[client].producer(
            topic, name=name, window_bytes=window_bytes, timeout=timeout_ms / 1000
        )
        self.producers[producer] = made
        return {"next_sequence": made.last_sequence + 1}

    def publish(
        self, producer: str, receipt: str, message: dict[str, Any], timeout_ms: int = TIMEOUT_MS
    ) -> None:
        self.receipts[receipt] = self.producers[producer].send(
            bytes.fromhex(message["payload"]),
            key=bytes.fromhex(message["key"]) if message.get("key") else None,
            attributes=message.get("attributes"),
            deliver_at=message.get("deliver_at_ms"),
            sequence=message.get("sequence"),
            timeout=timeout_ms / 1000,
        )

    def publish_batch(
        self, producer: str, receipt: str, messages: list[dict[str, Any]], timeout_ms: int = TIMEOUT_MS
    ) -> None:
        keys = [bytes.fromhex(each["key"]) if each.get("key") else None for each in messages]
        attributes = [each.get("attributes") for each in messages]
        times = [each.get("deliver_at_ms") for each in messages]
        self.receipts[receipt] = self.producers[producer].send_batch(
            [bytes.fromhex(each["payload"]) for each in messages],
            keys=keys if any(keys) else None,
            attributes=attributes if any(attributes) else None,
            deliver_at=[each or 0 for each in times] if any(times) else None,
            timeout=timeout_ms / 1000,
        )

    def receipt(self, receipt: str, timeout_ms: int = TIMEOUT_MS) -> dict[str, Any]:
        waiting = self.receipts[receipt]
        try:
            published = waiting.result(timeout_ms / 1000)
        finally:
            if waiting.done():
                del self.receipts[receipt]
        return {
            "offset": published.offset,
            "count": published.count,
            "duplicate": published.duplicate,
        }

    def flush(
        self, producer: str | None = None, consumer: str | None = None, timeout_ms: int = TIMEOUT_MS
    ) -> None:
        flushed: Any = self.consumers.get(consumer or "") or self.producers[producer or ""]
        flushed.flush(timeout_ms / 1000)

    # ---- receiving

    def consumer(
        self,
        client: str,
        consumer: str,
        topic: str,
        subscription: str,
        type: Any,
        start: Any = None,
        priority: int = 0,
        force: bool = False,
        credit_messages: int | None = None,
        options: dict[str, Any] | None = None,
        timeout_ms: int | None = None,
    ) -> dict[str, Any]:
        made = self.clients[client].consumer(
            topic,
            subscription,
            type=type,
            start=place(start),
            priority=priority,
            force=force,
            credit_messages=credit_messages,
            timeout=None if timeout_ms is None else timeout_ms / 1000,
            **(options or {}),
        )
        self.consumers[consumer], self.held[consumer] = made, {}
        return {"position": None if is_pattern(topic) else made.position}

    def reader(
        self,
        client: str,
        consumer: str,
        topic: str,
        start: Any = "earliest",
        credit_messages: int | None = None,
        timeout_ms: int = TIMEOUT_MS,
    ) -> dict[str, Any]:
        made = self.clients[client].reader(
            topic, start=place(start), credit_messages=credit_messages, timeout=timeout_ms / 1000
        )
        self.consumers[consumer], self.held[consumer] = made, {}
        return {"position": made.position}

    def receive(
        self, consumer: str, max: int = 1, batch: bool = False, timeout_ms: int = TIMEOUT_MS
    ) -> dict[str, Any]:
        taken: list[ister.Message] = []
        until = time.monotonic() + timeout_ms / 1000
        if consumer in self.late:
            raise self.late.pop(consumer)
        try:
            if batch:
                taken.extend(self.consumers[consumer].receive_batch(max, timeout_ms / 1000) or ())
            while not batch and len(taken) < max:
                left = until - time.monotonic()
                message = self.consumers[consumer].receive(left if left > 0 else 0)
                if message is None:
                    break
                taken.append(message)
        except (IsterError, CancelledError) as error:
            if not taken:
                raise
            self.late[consumer] = error
        self.held[consumer] |= {(message.topic, message.offset): message for message in taken}
        return {"messages": [shown(message) for message in taken]}

    def _places(self, consumer: str, offsets: list[int], topic: str | None) -> list[tuple[str, int]]:
        return [(self.consumers[consumer].topic if topic is None else topic, offset) for offset in offsets]

    def ack(self, consumer: str, offsets: list[int], topic: str | None = None) -> None:
        held = self.held[consumer]
        self.consumers[consumer].ack([held.pop(place) for place in self._places(consumer, offsets, topic)])

    def nack(
        self,
        consumer: str,
        offsets: list[int],
        delay_ms: int | None = None,
        reason: str | None = None,
        topic: str | None = None,
    ) -> None:
        held = self.held[consumer]
        messages = [held.pop(place) for place in self._places(consumer, offsets, topic)]
        delay = None if delay_ms is None else delay_ms / 1000
        self.consumers[consumer].nack(messages, delay, reason or "")

    def extend(self, consumer: str, offsets: list[int], topic: str | None = None) -> None:
        held = self.held[consumer]
        self.consumers[consumer].extend([held[place] for place in self._places(consumer, offsets, topic)])

    def ack_until(self, consumer: str, offset: int, topic: str | None = None) -> None:
        held = self.held[consumer]
        [last] = self._places(consumer, [offset], topic)
        self.consumers[consumer].ack_until(held[last])
        self.held[consumer] = {
            each: message for each, message in held.items() if each[0] != last[0] or each[1] > offset
        }

    def seek(self, consumer: str, to: Any, timeout_ms: int = TIMEOUT_MS) -> dict[str, Any]:
        return {"position": self.consumers[consumer].seek(place(to), timeout_ms / 1000)}

    def events(self, client: str | None = None, consumer: str | None = None) -> dict[str, Any]:
        source: Any = (self.clients.get(client or "") or self.consumers[consumer or ""]).events
        told = [source.popleft() for _ in range(len(source))]
        names = ("code", "count", "offset", "text") if client is None else ("code",)
        return {"events": [{name: getattr(event, name) for name in names} for event in told]}

    # ---- dead letters

    def letters(
        self, client: str, topic: str, subscription: str, max: int = 100, timeout_ms: int = TIMEOUT_MS
    ) -> dict[str, Any]:
        waiting = self.clients[client].dead_letters(topic, subscription, timeout=timeout_ms / 1000)
        names = ("offset", "attributes", "topic", "subscription", "origin_offset", "attempts", "reason")
        return {
            "letters": [
                {
                    **{name: getattr(each, name) for name in names},
                    "payload": each.payload.hex(),
                    "key": None if each.key is None else each.key.hex(),
                }
                for each in waiting.list(max)
            ]
        }

    def redrive(
        self,
        client: str,
        topic: str,
        subscription: str,
        offsets: list[int] | None = None,
        to: str | None = None,
        max: int | None = None,
        timeout_ms: int = TIMEOUT_MS,
    ) -> dict[str, Any]:
        waiting = self.clients[client].dead_letters(topic, subscription, timeout=timeout_ms / 1000)
        return {"messages": waiting.redrive(max, offsets=offsets, to=to)}

    def purge(
        self, client: str, topic: str, subscription: str, max: int | None = None, timeout_ms: int = TIMEOUT_MS
    ) -> dict[str, Any]:
        waiting = self.clients[client].dead_letters(topic, subscription, timeout=timeout_ms / 1000)
        return {"messages": waiting.purge(max)}

    # ---- being measured

    def bench_publish(
        self, producer: str, messages: int, message_bytes: int, batch: int, timeout_ms: int = TIMEOUT_MS
    ) -> dict[str, Any]:
        publisher, payload = self.producers[producer], bytes(message_bytes)
        send = publisher.send
        began = time.perf_counter()
        if batch:
            for first in range(0, messages, batch):
                publisher.send_batch([payload] * min(batch, messages - first))
        else:
            for _ in range(messages):
                send(payload)
        publisher.flush(timeout_ms / 1000)
        return {"seconds": time.perf_counter() - began}

    def bench_receive(
        self, consumer: str, messages: int, batch: bool, timeout_ms: int = TIMEOUT_MS
    ) -> dict[str, Any]:
        taker = self.consumers[consumer]
        count = size = 0
        began = -1.0
        if batch:
            while count < messages:
                together = taker.receive_batch(timeout=timeout_ms / 1000)
                if together is None:
                    raise TimeoutExpiredError(f"{count} of {messages} messages came")
                began = time.perf_counter() if began < 0 else began
                count += len(together.payloads)
                size += sum(map(len, together.payloads))
                taker.ack(together)
        else:
            ack = taker.ack
            for message in taker:
                if began < 0:
                    began = time.perf_counter()
                size += len(message.payload)
                assert message.offset >= 0
                ack(message)
                count += 1
                if count == messages:
                    break
        taker.flush(timeout_ms / 1000)
        return {"seconds": time.perf_counter() - began, "bytes": size}

    def bench_round_trips(
        self, producer: str, consumer: str, messages: int, message_bytes: int, timeout_ms: int = TIMEOUT_MS
    ) -> dict[str, Any]:
        publisher, taker, payload = self.producers[producer], self.consumers[consumer], bytes(message_bytes)
        took = []
        for _ in range(messages):
            began = time.perf_counter()
            publisher.send(payload)
            message = taker.receive(timeout_ms / 1000)
            took.append(time.perf_counter() - began)
            taker.ack(message)
        took.sort()
        return {"p50_us": took[len(took) // 2] * 1e6, "p99_us": took[len(took) * 99 // 100] * 1e6}

    # ---- request and reply

    def request(
        self,
        client: str,
        topic: str,
        payload: str,
        attributes: dict[str, str] | None = None,
        timeout_ms: int = TIMEOUT_MS,
    ) -> dict[str, Any]:
        answer = self.clients[client].request(
            topic, bytes.fromhex(payload), attributes=attributes, timeout=timeout_ms / 1000
        )
        return {"message": shown(answer)}

    def reply(
        self, consumer: str, offset: int, payload: str, attributes: dict[str, str] | None = None
    ) -> None:
        [asked] = self._places(consumer, [offset], None)
        self.held[consumer][asked].reply(bytes.fromhex(payload), attributes=attributes)


COMMANDS = {name for name in vars(Driver) if not name.startswith("_")}


def called(method: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Call a method with those arguments that it has."""
    names = inspect.signature(method).parameters
    return method(**{key: value for key, value in given.items() if key in names}) or {}


@contextlib.contextmanager
def cancelled_after(milliseconds: int | None) -> Iterator[None]:
    """Interrupt what is done here after this time, as Ctrl-C would."""
    if milliseconds is None:
        yield
        return

    def interrupt(*_: object) -> None:
        raise CancelledError("cancelled")

    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, milliseconds / 1000)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def answer(driver: Driver, line: str) -> dict[str, Any]:
    """Carry out a command."""
    command = json.loads(line)
    number, name = command.pop("id"), command.pop("do")
    given = {key: value for key, value in command.items() if value is not None}
    try:
        if name not in COMMANDS:
            raise UnsupportedError(f"the command {name!r}")
        with cancelled_after(given.pop("cancel_after_ms", None)):
            return {"id": number, "ok": called(getattr(driver, name), given)}
    except IsterError as error:
        told = (error.code, error.action, error.text)
    except CancelledError as error:
        told = ("cancelled", "retry", str(error))
    except UnsupportedError as error:
        told = ("unsupported", "fix", f"this driver does not know {error}")
    except Exception as error:  # noqa: BLE001 (whatever it is, the test is to be told)
        told = ("driver-failed", "stop", f"{type(error).__name__}: {error}")
    return {"id": number, "error": dict(zip(("code", "action", "text"), told, strict=True))}


def main() -> None:
    """Answer every line, then close what is open."""
    driver = Driver()
    for line in sys.stdin:
        print(json.dumps(answer(driver, line)), flush=True)
    for client in driver.clients.values():
        client.close()


if __name__ == "__main__":
    main()
