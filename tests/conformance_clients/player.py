"""The vocabulary of scenarios: a driver with one client, and short methods for its commands."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import pytest

from tests.conformance_clients.drivers import AnsweredError, Driver, Kind

Shown = dict[str, Any]  # a message as a driver shows it
ANSWER_MS: Final = 20_000  # for what should be immediate, on a busy machine
QUIET_MS: Final = 300  # silence after which a scenario assumes that nothing will come


class Player:
    """A running driver with a client `c`; names are generated here."""

    def __init__(self, kind: Kind, started: list[Player]) -> None:
        self.driver = Driver(kind)
        self._names = itertools.count(1)
        started.append(self)

    @property
    def name(self) -> str:
        """The client's language."""
        return self.driver.kind.name

    def can(self, *capabilities: str) -> bool:
        """Return whether the client has all of these."""
        return self.driver.capabilities.issuperset(capabilities)

    def need(self, *capabilities: str) -> None:
        """Skip the test, visibly, if the client lacks one of these."""
        missing = sorted(set(capabilities) - self.driver.capabilities)
        if missing:
            pytest.skip(f"the client {self.name} lacks: {', '.join(missing)}")

    def fresh(self, what: str) -> str:
        """Return an unused name."""
        return f"{what}-{next(self._names)}"

    # ---- what scenarios say

    def connect(self, *endpoints: str, client: str = "c") -> None:
        """Connect a client."""
        self.driver.ask("connect", client=client, endpoints=list(endpoints), timeout_ms=ANSWER_MS)

    def admin(self, operation: str, *, client: str = "c", **arguments: Any) -> Any:
        """Send an administrative request, and return the result."""
        asked = {"client": client, "operation": operation, "arguments": arguments, "timeout_ms": ANSWER_MS}
        return self.driver.ask("admin", **asked)["result"]

    def topic(self, name: str, **arguments: Any) -> str:
        """Create a topic and return its name."""
        self.admin("topic.create", topic=name, **arguments)
        return name

    def producer(self, topic: str, *, client: str = "c", **more: Any) -> str:
        """Open a producer and return its name."""
        name = self.fresh("producer")
        asked: dict[str, Any] = {
            "client": client,
            "producer": name,
            "topic": topic,
            "timeout_ms": ANSWER_MS,
        } | more
        self.driver.ask("producer", **asked)
        return name

    def publish(self, producer: str, payload: bytes, *, timeout_ms: int = ANSWER_MS, **columns: Any) -> str:
        """Publish a message, and return the receipt's name."""
        name = self.fresh("receipt")
        message = {"payload": payload.hex(), **columns}
        self.driver.ask("publish", producer=producer, receipt=name, message=message, timeout_ms=timeout_ms)
        return name

    def publish_all(self, producer: str, payloads: Sequence[bytes]) -> list[str]:
        """Publish messages one by one, as fast as the client accepts them, and return the receipts' names."""
        names = [self.fresh("receipt") for _ in payloads]
        sent = [
            self.driver.send(
                "publish",
                producer=producer,
                receipt=name,
                message={"payload": payload.hex()},
                timeout_ms=ANSWER_MS,
            )
            for name, payload in zip(names, payloads, strict=True)
        ]
        for number in sent:
            self.driver.answer(number)
        return names

    def publish_batch(self, producer: str, messages: Sequence[Mapping[str, Any]]) -> str:
        """Publish messages with one call, and return the receipt's name."""
        name = self.fresh("receipt")
        asked = {"producer": producer, "receipt": name, "messages": messages, "timeout_ms": ANSWER_MS}
        self.driver.ask("publish_batch", **asked)
        return name

    def receipt(self, name: str, *, timeout_ms: int = ANSWER_MS) -> dict[str, Any]:
        """Wait for the broker's answer, and return it."""
        return self.driver.ask("receipt", receipt=name, timeout_ms=timeout_ms)

    def offsets(self, receipts: Sequence[str]) -> list[int]:
        """Wait for receipts, and return the offsets."""
        return [self.receipt(name)["offset"] for name in receipts]

    def stored(self, topic: str, *payloads: bytes) -> list[int]:
        """Publish payloads, wait for the receipts, and return the offsets."""
        producer = self.producer(topic)
        offsets = self.offsets([self.publish(producer, payload) for payload in payloads])
        self.close(producer=producer)
        return offsets

    def consumer(self, topic: str, subscription: str, type: str, *, client: str = "c", **more: Any) -> str:
        """Open a consumer, by default from the earliest message on, and return its name."""
        name = self.fresh("consumer")
        asked: dict[str, Any] = {"client": client, "consumer": name, "topic": topic}
        asked |= {"subscription": subscription}
        asked |= {"type": type, "start": "earliest", "timeout_ms": ANSWER_MS}
        self.driver.ask("consumer", **(asked | more))
        return name

    def reader(self, topic: str, *, client: str = "c", **more: Any) -> str:
        """Open a reader and return its name."""
        name = self.fresh("reader")
        asked: dict[str, Any] = {"client": client, "consumer": name, "topic": topic, "timeout_ms": ANSWER_MS}
        self.driver.ask("reader", **(asked | more))
        return name

    def receive(
        self, consumer: str, max: int = 1, *, timeout_ms: int = ANSWER_MS, **more: Any
    ) -> list[Shown]:
        """Take at most `count` messages."""
        told = self.driver.ask("receive", consumer=consumer, max=max, timeout_ms=timeout_ms, **more)
        messages: list[Shown] = told["messages"]
        return messages

    def nothing(self, consumer: str) -> bool:
        """Return whether nothing comes for a while."""
        return not self.receive(consumer, timeout_ms=QUIET_MS)

    def ack(self, consumer: str, *messages: Shown) -> None:
        """Acknowledge messages."""
        self.driver.ask("ack", consumer=consumer, offsets=[each["offset"] for each in messages])

    def flush(self, consumer: str) -> None:
        """Wait until acknowledgments are stored."""
        self.driver.ask("flush", consumer=consumer, timeout_ms=ANSWER_MS)

    def close(self, **what: Any) -> None:
        """Close a producer, consumer or client."""
        self.driver.ask("close", timeout_ms=ANSWER_MS, **what)

    def events(self, **what: Any) -> list[dict[str, Any]]:
        """Return the events since the last call."""
        events: list[dict[str, Any]] = self.driver.ask("events", **what)["events"]
        return events

    def until_event(self, code: str, *, within: int = 100, **what: Any) -> dict[str, Any]:
        """Receive until an event of that code has come, and return it."""
        for _ in range(within):
            for event in self.events(**what):
                if event["code"] == code:
                    return event
            if "consumer" in what:
                assert not self.receive(what["consumer"], timeout_ms=100), "a message came before the event"
        raise AssertionError(f"the event {code!r} did not come")

    def refused(self, what: Callable[[], Any]) -> AnsweredError:
        """Return the error with which a call ends."""
        with pytest.raises(AnsweredError) as caught:
            what()
        return caught.value


def payloads_of(messages: Sequence[Shown]) -> list[bytes]:
    """Return the payloads of messages."""
    return [bytes.fromhex(message["payload"]) for message in messages]
