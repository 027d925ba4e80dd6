"""Topics and subscriptions created and deleted amid faults: existing ones work, and nothing is left of others."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from ister.wire import Key, Type
from tests.raw_client import Frame
from tests.stage import Stage, StagedClient

STEPS = 250
TOPICS = ["a", "b", "c"]
SUBSCRIPTIONS = ["s", "t"]


class Bustle:
    """Clients that do random things with a few names, and never wait for an answer."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = Random(seed)
        self.stage = Stage(folder, 2, protocol__session_timeout_ms=8000, protocol__heartbeat_ms=1000)
        self.stage.loop.chaos = self.random if seed % 3 else None
        self.clients = [self.stage.client(number % 2) for number in range(5)]
        self.asked: dict[int, str] = {}  # by REF: requests without an answer
        self.opens: dict[tuple[bytes, int], int] = {}  # by client and handle: the REF of its last open

    def ask(self, client: StagedClient, operation: str, **arguments: Any) -> None:
        ref = next(client._refs)
        self.asked[ref] = operation
        client.say({Key.TYPE: Type.REQUEST, Key.REF: ref, Key.OPERATION: operation, Key.ARGUMENTS: arguments})

    def step(self) -> None:
        random, stage = self.random, self.stage
        client, topic = random.choice(self.clients), random.choice(TOPICS)
        subscription, handle = random.choice(SUBSCRIPTIONS), random.randrange(4)
        what = random.choices(range(11), [6, 4, 3, 3, 12, 12, 12, 6, 8, 2, 3])[0]
        if what == 0:
            self.ask(
                client, "topic.create", topic=topic, dispatch=random.choice(["reliable", "non-reliable"])
            )
        elif what == 1:
            self.ask(client, "topic.delete", topic=topic)
        elif what == 2:
            self.ask(client, "subscription.create", topic=topic, subscription=subscription, type="shared")
        elif what == 3:
            self.ask(client, "subscription.delete", topic=topic, subscription=subscription)
        elif what == 4:
            self.opened(client, handle, client.say_open_producer(handle, topic, 1 + random.randrange(3), 0))
        elif what == 5:
            start: str | int = "earliest" if random.random() < 0.5 else 5
            ref = client.say_open_consumer(handle, topic, subscription, "shared", start=start)
            self.opened(client, handle, ref)
        elif what == 6:
            client.publish(handle, random.randrange(4), b"x", b"y")
        elif what == 7:
            ref = next(client._refs)
            self.asked[ref] = "close"
            self.asked.pop(self.opens.get((client.routing, handle), 0), None)
            client.say({Key.TYPE: Type.CLOSE, Key.REF: ref, Key.HANDLE: handle})
        elif what == 8:
            stage.loop.once() if random.random() < 0.6 else stage.advance(random.choice([0, 0.1, 1]))
        elif what == 9:
            stage.loop.holds_work = not stage.loop.holds_work
        elif (pair := random.choice([("worker-0", "worker-1"), ("worker-1", "worker-0")])) in stage.held:
            stage.let_go(*pair)
        else:
            stage.hold(*pair)
        self.listen()

    def opened(self, client: StagedClient, handle: int, ref: int) -> None:
        """Note an open: it must be answered, unless a later one of the same handle overtakes it."""
        self.asked.pop(self.opens.get((client.routing, handle), 0), None)
        self.opens[client.routing, handle] = ref
        self.asked[ref] = "open"

    def listen(self, *, always: bool = False) -> None:
        for client in self.clients:
            if always or self.random.random() < 0.5:
                while (frame := client.hear(0)) is not None:
                    self.heard(frame)

    def heard(self, frame: Frame) -> None:
        self.asked.pop(frame.header.get(Key.REF, 0), None)
        assert frame.code != "internal", frame

    def finish(self) -> None:
        stage = self.stage
        stage.loop.holds_work = False
        for pair in list(stage.held):
            stage.let_go(*pair)
        for _ in range(4):  # of seconds each, so short that sessions survive
            stage.advance(3)
            self.listen(always=True)
            for client in self.clients:
                client.say({Key.TYPE: Type.PING})
        assert self.asked == {}, "some were never answered"
        for client in self.clients:
            client.say({Key.TYPE: Type.BYE})
        stage.settle()
        assert stage.actors("consumer") == []
        client = stage.client()
        there = {each["topic"]: each for each in client.request("topic.list")["topics"]}
        for name in TOPICS:
            if name not in there:
                assert stage.actors("topic", name) == []
                assert stage.actors("subscription", name) == []
                continue
            producer = stage.at_topic(name)
            opened = producer.open_producer(1, name, 99)
            assert opened.kind == Type.OPENED
            consumer = stage.at_subscription(name, "last")
            assert consumer.open_consumer(1, name, "last", start="latest").kind == Type.OPENED
            producer.publish(1, opened.header[Key.SEQUENCE], b"still here")
            assert producer.receipt(1)
            assert consumer.deliveries(1, 1)[0][1] == b"still here"
        folders = {path.split("/")[3] for path in stage.disk._names if path.count("/") > 3}
        known = {f"{name}.{each['incarnation']}" for name, each in there.items()}
        assert folders <= known, "something of a deleted topic is left"


@pytest.mark.parametrize("seed", range(12))
def test_what_exists_works_and_what_was_deleted_is_gone(seed: int, tmp_path: Path) -> None:
    """Every request is answered; every existing topic accepts and delivers; no file or actor of another is left."""
    bustle = Bustle(tmp_path, seed)
    for _ in range(STEPS):
        bustle.step()
    bustle.finish()
    bustle.stage.close()
