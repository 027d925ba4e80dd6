"""Scenes for the tests of reliable subscriptions: a topic, its producer, consumers, and the frames they receive."""

from __future__ import annotations

from typing import Any

from ister.wire import Key, Type
from tests.raw_client import Frame
from tests.stage import Stage, StagedClient


class Scene:
    """One reliable topic on a staged broker, with one subscription."""

    def __init__(self, stage: Stage, *, type: str = "shared", **topic: Any) -> None:
        self.stage = stage
        self.type = type
        stage.client().request("topic.create", topic="orders", **topic)
        self.producer = stage.at_topic("orders")
        assert self.producer.open_producer(1, "orders", 7).kind == Type.OPENED
        self.sent = 0

    def now_ms(self) -> int:
        """Return the broker's time in ms."""
        return self.stage.clock.time_ms()

    def publish(self, *payloads: bytes, key: bytes = b"", deliver_at: list[int] | None = None) -> None:
        """Publish one batch and wait for its receipt."""
        messages = [(key, payload) for payload in payloads]
        self.producer.publish_keyed(1, self.sent, *messages, deliver_at=deliver_at or ())
        self.sent += len(payloads)
        self.producer.receipts(1, 1)

    def consumer(self, name: str = "s", **options: Any) -> StagedClient:
        """Return a consumer of the subscription, open as handle 1."""
        client = self.stage.at_subscription("orders", name)
        options = {"sparse": True} | options
        answer = client.open_consumer(1, "orders", name, self.type, **options)
        assert answer.kind == Type.OPENED, answer.header
        client.opened = answer
        return client

    def ask(self, operation: str, **arguments: Any) -> Frame:
        """Send a request about the subscription, and return the answer's header."""
        arguments = {"topic": "orders", "subscription": "s"} | arguments
        return self.stage.client().ask(f"subscription.{operation}", **arguments)

    def request(self, operation: str, **arguments: Any) -> Any:
        """Send a request about the subscription, and return its result."""
        answer = self.ask(operation, **arguments)
        assert answer.kind == Type.RESULT, answer.header
        return answer.result

    def shown(self) -> dict[str, Any]:
        """Return the result of `subscription.show`."""
        found: dict[str, Any] = self.request("show")
        return found

    def update(self, **options: Any) -> None:
        """Update the subscription's settings."""
        self.request("update", **options)


def rows(frame: Frame) -> list[tuple[int, bytes, int]]:
    """Return (offset, payload, attempt) of each message of a DELIVER frame."""
    return [(offset, payload, frame.header[Key.ATTEMPT]) for offset, payload in frame.messages()]


def heard(client: StagedClient) -> list[tuple[int, bytes, int]]:
    """Return (offset, payload, attempt) of the messages a consumer received so far; events stay unread."""
    found: list[tuple[int, bytes, int]] = []
    others: list[Frame] = []
    while (frame := client.hear(0)) is not None:
        if frame.kind == Type.DELIVER:
            found += rows(frame)
        else:
            others.append(frame)
    client.unread[:0] = others
    return found


def offsets(client: StagedClient) -> list[int]:
    """Return the offsets that a consumer received so far."""
    return [offset for offset, _, _ in heard(client)]


def events(client: StagedClient) -> list[Frame]:
    """Return the events that a consumer received so far."""
    client.stage.settle()
    found: list[Frame] = []
    others: list[Frame] = []
    while (frame := client.hear(0)) is not None:
        (found if frame.kind == Type.EVENT else others).append(frame)
    client.unread[:0] = others
    return found


def subscription(scene: Scene) -> Any:
    """Return the actor of the scene's subscription."""
    return scene.stage.actor("subscription", "orders", "s")


def part(scene: Scene, kind: type) -> Any:
    """Return a part of the scene's subscription by its class."""
    return next(each for each in subscription(scene).parts if isinstance(each, kind))


def consumer_of(scene: Scene, number: int = 0) -> Any:
    """Return the actor of one of the consumers; number 0 is the oldest."""
    return scene.stage.actors("consumer")[number]


def say_seek(client: StagedClient, to: str | int) -> int:
    """Send a seek request, wait for nothing, and return its REF."""
    ref = next(client._refs)
    arguments = {"topic": "orders", "subscription": "s", "to": to}
    client.say(
        {
            Key.TYPE: Type.REQUEST,
            Key.REF: ref,
            Key.OPERATION: "subscription.seek",
            Key.ARGUMENTS: arguments,
        }
    )
    return ref


def reader(scene: Scene, name: str = "r-1", **options: Any) -> StagedClient:
    """Return a reader of the topic, open as handle 1."""
    client = scene.stage.at_subscription("orders", name)
    answer = client.open_consumer(1, "orders", name, "reader", **options)
    assert answer.kind == Type.OPENED, answer.header
    return client
