"""Clients of other languages for the campaign: the methods of `ister.Client` that it needs, through a driver.

Each thread of the campaign that uses such a client has a driver process of its own, because a driver does one thing
after the other. DRIVER.md in tests/conformance_clients describes the commands.

Invariants
- errors come as the Python client's: the campaign uses their codes and actions
- a receipt's callbacks are called by the thread that sent the message, when it next sends, flushes or waits
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from ister.errors import ClosedError, ConnectionLostError, IsterError, RemoteError, TimeoutExpiredError
from ister.published import Published
from tests.conformance_clients.drivers import AnsweredError, Driver, DriverBrokenError, Kind

NEEDED: Final = (
    *("pipeline", "keys", "attributes", "delivery-time", "named-producer", "confirm", "nack", "ack-until"),
    *("reader", "seek", "priority", "credit", "moved", "reconnect", "heartbeat", "orderly-close"),
)
CONNECT_WITHIN_S: Final = 30.0
ASK_WITHIN_S: Final = 10.0
_names = itertools.count(1)


def milliseconds(seconds: float | None) -> int:
    """Return a time as drivers take it."""
    return round((ASK_WITHIN_S if seconds is None else seconds) * 1000)


def error_of(answered: AnsweredError) -> IsterError:
    """Return the error that the Python client would raise."""
    kinds: dict[str, type[IsterError]] = {
        "timeout": TimeoutExpiredError,
        "connection-lost": ConnectionLostError,
        "closed": ClosedError,
    }
    if answered.code in kinds:
        return kinds[answered.code](answered.text)
    return RemoteError(answered.code, answered.text, answered.action)  # type: ignore[arg-type]


class ThroughClient:
    """A client of another language, in place of `ister.Client`."""

    def __init__(self, kind: Kind, endpoints: Sequence[str]) -> None:
        self._kind = kind
        self._endpoints = list(endpoints)
        self._here = threading.local()
        self._lock = threading.Lock()
        self._drivers: list[Driver] = []
        self._closed = False

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a command to this thread's driver; raises `IsterError`, `DriverBrokenError`."""
        driver: Driver | None = getattr(self._here, "driver", None)
        try:
            if driver is None:
                driver = self._here.driver = self._start()
                within = milliseconds(CONNECT_WITHIN_S)
                driver.ask("connect", client="c", endpoints=self._endpoints, timeout_ms=within)
            return driver.ask(do, **arguments)
        except AnsweredError as answered:
            raise error_of(answered) from None

    def _start(self) -> Driver:
        driver = Driver(self._kind)
        with self._lock:
            if self._closed:
                driver.kill()
                raise ClosedError("the client is closed")
            self._drivers.append(driver)
        missing = sorted(set(NEEDED) - driver.capabilities)
        if missing:
            raise DriverBrokenError(f"the campaign needs what {self._kind.name} lacks: {', '.join(missing)}")
        return driver

    def close(self) -> None:
        """End every driver, whatever its thread is doing."""
        with self._lock:
            self._closed = True
            drivers, self._drivers = self._drivers, []
        for driver in drivers:
            driver.kill()

    def producer(self, topic: str, *, name: str, timeout: float) -> ThroughProducer:
        """Open a producer with a name."""
        here = f"producer-{next(_names)}"
        asked = {"client": "c", "producer": here, "topic": topic, "name": name}
        self.ask("producer", **asked, timeout_ms=milliseconds(timeout))
        return ThroughProducer(self, here, topic)

    def consumer(
        self,
        topic: str,
        subscription: str,
        *,
        type: str,
        start: str,
        priority: int,
        credit_messages: int,
        timeout: float,
    ) -> ThroughConsumer:
        """Open a consumer."""
        here = f"consumer-{next(_names)}"
        asked: dict[str, Any] = {"client": "c", "consumer": here, "topic": topic, "type": type}
        asked |= {"subscription": subscription}
        asked |= {"start": start, "timeout_ms": milliseconds(timeout), "credit_messages": credit_messages}
        self.ask("consumer", **asked, priority=priority if type == "failover" else None)
        return ThroughConsumer(self, here, f"the consumer of {subscription!r} of topic {topic!r}")

    def reader(self, topic: str, *, start: str, timeout: float) -> ThroughConsumer:
        """Open a reader."""
        here = f"reader-{next(_names)}"
        asked = {"client": "c", "consumer": here, "topic": topic, "start": start}
        self.ask("reader", **asked, timeout_ms=milliseconds(timeout))
        return ThroughConsumer(self, here, f"the reader of topic {topic!r}")


class ThroughReceipt:
    """A receipt of a driver."""

    def __init__(self, producer: ThroughProducer, name: str) -> None:
        self._producer = producer
        self._outcome: Published | IsterError | None = None
        self._calls: list[Callable[[ThroughReceipt], Any]] = []
        self.name = name

    def add_done_callback(self, call: Callable[[ThroughReceipt], Any]) -> None:
        """Call `call` once there is an answer."""
        if self._outcome is None:
            self._calls.append(call)
        else:
            call(self)

    def resolve(self, outcome: Published | IsterError) -> None:
        """Note the answer."""
        self._outcome = outcome
        calls, self._calls = self._calls, []
        for call in calls:
            call(self)

    def result(self, timeout: float) -> Published:
        """Wait, and return where the message is."""
        while self._outcome is None:
            self._producer.collect_one(timeout)
        if isinstance(self._outcome, IsterError):
            raise self._outcome
        return self._outcome


class ThroughProducer:
    """A producer behind a driver; used by one thread."""

    def __init__(self, client: ThroughClient, name: str, topic: str) -> None:
        self._client = client
        self._name = name
        self._topic = topic
        self._waiting: deque[ThroughReceipt] = deque()

    def send(
        self,
        payload: bytes,
        *,
        key: bytes | None = None,
        attributes: Mapping[str, str] | None = None,
        deliver_at: int | None = None,
        timeout: float,
    ) -> ThroughReceipt:
        """Send a message, and see which receipts have arrived."""
        receipt = ThroughReceipt(self, f"receipt-{next(_names)}")
        message: dict[str, Any] = {"payload": payload.hex()}
        if key:
            message["key"] = key.hex()
        if attributes:
            message["attributes"] = attributes
        if deliver_at:
            message["deliver_at_ms"] = deliver_at
        asked = {"producer": self._name, "receipt": receipt.name, "message": message}
        self._client.ask("publish", **asked, timeout_ms=milliseconds(timeout))
        self._waiting.append(receipt)
        self._collect()
        return receipt

    def _collect(self) -> None:
        try:
            while len(self._waiting) > 1:  # the newest was sent just now
                self.collect_one(0.0)
        except TimeoutExpiredError:
            pass  # the oldest has not arrived, and so neither have the others

    def collect_one(self, timeout: float | None) -> None:
        """Wait for the oldest receipt; raises `TimeoutExpiredError`."""
        receipt = self._waiting[0]
        outcome: Published | IsterError
        try:
            told = self._client.ask("receipt", receipt=receipt.name, timeout_ms=milliseconds(timeout))
        except TimeoutExpiredError:
            raise
        except IsterError as error:
            outcome = error
        else:
            outcome = Published(self._topic, told["offset"], told["count"], bool(told["duplicate"]))
        self._waiting.popleft()
        receipt.resolve(outcome)

    def flush(self, timeout: float) -> None:
        """Wait until everything has been answered."""
        while self._waiting:
            self.collect_one(timeout)

    def close(self, timeout: float) -> None:
        """Close it."""
        self._client.ask("close", producer=self._name, timeout_ms=milliseconds(timeout))


class ThroughMessage:
    """A message from a driver."""

    def __init__(self, shown: Mapping[str, Any]) -> None:
        self.offset: int = shown["offset"]
        self.payload = bytes.fromhex(shown["payload"])
        self.key = bytes.fromhex(shown["key"]) if shown.get("key") else None
        self.attributes: dict[str, str] = shown.get("attributes", {})
        self.delivery = object()  # which messages came together is unknown


class Unknown:
    """The opening of the consumer in which a message came, which is unknown: no two values are equal."""

    @property
    def begun(self) -> int:
        """A different number each time."""
        return next(_names)


class ThroughConsumer:
    """A consumer or reader behind a driver; used by one thread."""

    def __init__(self, client: ThroughClient, name: str, what: str) -> None:
        self._client = client
        self._name = name
        self.what = what
        self.attachment = Unknown()

    def _ask(self, do: str, timeout: float | None = None, **more: Any) -> dict[str, Any]:
        if timeout is not None:
            more["timeout_ms"] = milliseconds(timeout)
        return self._client.ask(do, consumer=self._name, **more)

    def receive(self, timeout: float) -> ThroughMessage | None:
        """Return the next message, or None."""
        messages = self._ask("receive", timeout)["messages"]
        return ThroughMessage(messages[0]) if messages else None

    def ack(self, message: ThroughMessage) -> None:
        """Acknowledge a message."""
        self._ask("ack", offsets=[message.offset])

    def ack_until(self, message: ThroughMessage) -> None:
        """Acknowledge everything up to and including a message."""
        self._ask("ack_until", offset=message.offset)

    def nack(self, message: ThroughMessage, delay: float | None = None, reason: str = "") -> None:
        """Refuse a message."""
        delay_ms = None if delay is None else milliseconds(delay)
        self._ask("nack", offsets=[message.offset], delay_ms=delay_ms, reason=reason)

    def flush(self, timeout: float) -> None:
        """Wait until the acknowledgments are stored."""
        self._ask("flush", timeout)

    def seek(self, place: str | int | datetime, timeout: float) -> int:
        """Move the subscription."""
        to = f"time:{round(place.timestamp() * 1000)}" if isinstance(place, datetime) else place
        position: int = self._ask("seek", timeout, to=to)["position"]
        return position

    def close(self) -> None:
        """Leave."""
        self._ask("close", 5.0)
