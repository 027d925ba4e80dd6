"""A staged broker whose clients publish and consume while faults happen; the same seed gives the same run.

Workers are killed and restarted, connections are lost, disks fail, mail is late, commits take time. The invariants are
checked all the time, and at the end, against what the clients know.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ister.wire import OFFSET_UNKNOWN, Key, Type
from tests.raw_client import Frame
from tests.stage import Stage, StagedClient

STEPS = 120
SEEDS = range(int(os.environ.get("ISTER_TEST_SEEDS", "25")))
PATIENCE_S = 3.0


class Agent:
    """A client that keeps one handle open, on whichever worker, whatever happens."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.random = play.random
        self.client: StagedClient | None = None
        self.open = False
        self.sessions: dict[int, bytes] = {}  # by worker

    def say_open(self, client: StagedClient) -> int:
        raise NotImplementedError

    def on_opened(self, opened: Frame) -> None:
        raise NotImplementedError

    def on_frame(self, frame: Frame) -> None:
        raise NotImplementedError

    def connect(self) -> bool:
        """Open the handle, following MOVED; return whether it is open."""
        stage = self.play.stage
        worker = self.random.randrange(len(stage.endpoints)) if self.client is None else self.client.worker
        for _ in range(4):
            if worker not in stage.workers:
                self.client = None
                return False
            if self.client is not None:
                self.client.disconnect()
            self.client = client = StagedClient(stage, worker, hello=False)
            client.patience_s = PATIENCE_S
            try:
                client.hello(session=self.sessions.get(worker))
                if client.session is None:
                    return False
                self.sessions[worker] = client.session
                ref = self.say_open(client)
                answer = client.expect(Type.OPENED, Type.MOVED, Type.ERROR, ref=ref)
            except AssertionError:  # no answer: the worker was killed meanwhile, or its mail is held
                self.client = None
                return False
            if answer.kind == Type.MOVED:
                worker = stage.worker_at(answer.header[Key.ENDPOINT])
                continue
            if answer.kind == Type.ERROR:
                assert answer.header[Key.ACTION] == "retry", answer
                return False
            client.unread.clear()  # from before OPENED: of an earlier open, or to be sent again
            self.open = True
            self.on_opened(answer)
            return True
        raise AssertionError("moved in circles")

    def lose(self) -> None:
        """Lose the connection."""
        if self.client is not None:
            self.client.disconnect()
        self.open = False

    def pump(self) -> None:
        """Read what arrived, and send something, so that a session that has ended is noticed."""
        client = self.client
        if client is None or not self.open:
            return
        client.say({Key.TYPE: Type.PING})
        while self.open and (frame := client.hear(0)) is not None:
            if frame.kind == Type.ERROR:
                assert frame.header[Key.ACTION] == "retry", frame
                self.open = False
            elif frame.kind != Type.PONG:
                self.on_frame(frame)
        if self.open and not client.router.out.keys() >= {client.routing}:
            self.open = False


class Publishing(Agent):
    """A producer that resends, byte for byte, every batch without a receipt."""

    def __init__(self, play: Play, number: int) -> None:
        super().__init__(play)
        self.number = number
        self.sequence = 0
        self.unresolved: dict[int, list[bytes]] = {}
        self.receipts: dict[int, int] = {}
        self.batches: dict[int, list[bytes]] = {}

    def say_open(self, client: StagedClient) -> int:
        return client.say_open_producer(
            1, "orders", 100 + self.number, min(self.unresolved, default=self.sequence)
        )

    def on_opened(self, opened: Frame) -> None:
        assert self.client is not None
        for sequence, payloads in self.unresolved.items():
            self.client.publish(1, sequence, *payloads)

    def on_frame(self, frame: Frame) -> None:
        assert frame.kind == Type.RECEIPT, frame
        flat = frame.header[Key.RECEIPTS]
        for sequence, offset in zip(flat[::2], flat[1::2], strict=True):
            self.unresolved.pop(sequence, None)
            if offset == OFFSET_UNKNOWN:
                continue
            assert self.receipts.setdefault(sequence, offset) == offset, "a batch has two places"
            self.play.told_durable(offset, self.batches[sequence])

    def publish(self, batches: int) -> None:
        for _ in range(batches):
            self.publish_one()

    def publish_one(self) -> None:
        payloads = [
            b"%d/%d " % (self.number, self.sequence + at) + bytes(self.random.choice([0, 3, 200, 2000]))
            for at in range(self.random.choice([1, 1, 1, 4, 30]))
        ]
        self.batches[self.sequence] = self.unresolved[self.sequence] = payloads
        if self.open and self.client is not None:
            self.client.publish(1, self.sequence, *payloads)
        self.sequence += len(payloads)


class Consuming(Agent):
    """One of several consumers of a subscription; `group` is what they know together."""

    def __init__(self, play: Play, group: Group) -> None:
        super().__init__(play)
        self.group = group
        self.seen: set[int] = set()  # since it opened
        self.holds: set[int] = set()  # delivered since it opened, and not acknowledged since
        self.credit = 0

    def say_open(self, client: StagedClient) -> int:
        self.credit = self.random.choice([3, 50, 500])
        return client.say_open_consumer(
            1,
            "orders",
            self.group.name,
            self.group.type,
            messages=self.credit,
            priority=self.random.randrange(3),
        )

    def on_opened(self, _opened: Frame) -> None:
        self.seen.clear()
        self.holds.clear()

    def on_frame(self, frame: Frame) -> None:
        if frame.kind != Type.DELIVER:
            return
        first, count = frame.header[Key.OFFSET], frame.header[Key.COUNT]
        self.credit -= count
        assert self.credit >= 0, "more than there was credit for"
        if self.group.ordered:
            known = self.seen | self.group.acknowledged
            gap = [offset for offset in range(first) if offset not in known]
            assert not gap, f"{self.group.name} was delivered {first} before {gap[:5]}"
        for offset, payload in frame.messages():
            self.play.delivered(offset, payload)
            self.seen.add(offset)
            self.holds.add(offset)
            self.group.delivered.add(offset)

    def act(self, *, everything: bool = False) -> None:
        """Acknowledge some, refuse some, give credit."""
        if not self.open or self.client is None:
            return
        mine = sorted(self.holds)
        if mine and (everything or self.random.random() < 0.7):
            some = mine if everything else self.random.sample(mine, self.random.randint(1, len(mine)))
            for at in range(0, len(some), 300):
                part = sorted(some)[at : at + 300]
                self.client.ack(1, *((offset, offset + 1) for offset in part), confirm=False)
            self.group.acknowledged.update(some)  # though the broker may not receive it
            self.holds.difference_update(some)
        elif mine and not self.group.ordered:
            offset = self.random.choice(mine)
            self.client.nack(1, (offset, offset + 1), delay_ms=self.random.choice([0, 500]))
        more = 200 if everything else self.random.choice([0, 5, 60])
        self.credit += more
        self.client.credit(1, more)


class Group:
    """A subscription, and what its consumers know together."""

    def __init__(self, name: str, type: str) -> None:
        self.name, self.type = name, type
        self.ordered = type != "shared"
        self.acknowledged: set[int] = set()  # by a consumer; whether the broker received it is another matter
        self.delivered: set[int] = set()


class Play:
    """One run."""

    durabilities = ("fsync", "fsync", "os")
    flags: Mapping[str, Any] = {}

    def prepare(self) -> None:
        """Do what is needed before the topic is created."""

    def more_things(self) -> list[tuple[int, Callable[[], Any]]]:
        """Return further events, with their frequencies."""
        return []

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = Random(seed)
        workers = self.random.choice([1, 2, 3])
        self.stage = Stage(
            folder,
            workers,
            protocol__session_timeout_ms=6000,
            protocol__heartbeat_ms=1000,
            protocol__message_bytes_max=100_000,
            protocol__batch_bytes_max=400_000,
            log__segment_bytes_max=(1 << 20) + 400_000,
            log__segment_age_ms_max=2000,
            **self.flags,
        )
        self.prepare()
        self.stage.expects_failures = True
        if self.random.random() < 0.7:
            self.stage.loop.chaos = self.random
        self.durability = self.random.choice(self.durabilities)
        self.stage.client().request("topic.create", topic="orders", durability=self.durability)
        self.messages: dict[int, bytes] = {}  # by offset, from receipts and deliveries
        self.groups = [Group("e", "exclusive"), Group("f", "failover"), Group("s", "shared")]
        self.producers = [Publishing(self, number) for number in range(2)]
        self.consumers = [
            Consuming(self, group)
            for group, times in zip(self.groups, (1, 2, 3), strict=True)
            for _ in range(times)
        ]
        self.agents: list[Agent] = [*self.producers, *self.consumers]
        self.down: set[int] = set()

    def told_durable(self, offset: int, payloads: list[bytes]) -> None:
        """Note a receipt."""
        for at, payload in enumerate(payloads, offset):
            assert self.messages.setdefault(at, payload) == payload, f"offset {at} was given out twice"

    def delivered(self, offset: int, payload: bytes) -> None:
        """Note a delivery."""
        assert self.messages.setdefault(offset, payload) == payload, f"offset {offset} is two messages"

    def step(self) -> None:
        """Let one event happen."""
        random, stage = self.random, self.stage
        things: list[tuple[int, Callable[[], Any]]] = [
            (30, lambda: random.choice(self.producers).publish(random.choice([1, 1, 5]))),
            (30, lambda: random.choice(self.consumers).act()),
            (8, lambda: stage.advance(random.choice([0.05, 0.5, 3.0]))),
            (5, lambda: random.choice(self.agents).lose()),
            (2, self.bye),
            (2, self.kill),
            (6, self.start),
            (2, self.fail_disk),
            (1, self.power_cut),
            (1, self.mistake),
            (4, self.hold),
            (2, self.lose_mail),
            (4, self.slow_disk),
            (4, self.half_turns),
            *self.more_things(),
        ]
        weights, calls = zip(*things, strict=True)
        (call,) = random.choices(calls, weights)
        call()
        for agent in random.sample(self.agents, len(self.agents)):
            agent.pump()
            if not agent.open and random.random() < 0.3:
                agent.connect()

    def bye(self) -> None:
        agent = self.random.choice(self.consumers)
        if agent.open and agent.client is not None:
            agent.client.say(
                {Key.TYPE: self.random.choice([Type.BYE, Type.CLOSE]), Key.REF: 1, Key.HANDLE: 1}
            )
            agent.open = False

    def kill(self) -> None:
        up = [worker for worker in self.stage.workers if worker not in self.down]
        if up:
            worker = self.random.choice(up)
            (self.stage.stop if self.random.random() < 0.3 else self.stage.kill)(worker)
            self.down.add(worker)

    def power_cut(self) -> None:
        if self.durability == "os":
            return  # receipts do not promise to survive that
        for worker in list(self.stage.workers):
            self.stage.kill(worker)
            self.down.add(worker)
        self.stage.loop.work.clear()
        self.stage.disk = self.stage.disk.power_loss(self.random)

    def mistake(self) -> None:
        kind = self.random.choice(["topic", "subscription", "consumer"])
        for actor in self.stage.actors(kind)[:1]:
            actor.fail(RuntimeError("a mistake"))

    def start(self) -> None:
        if self.down:
            worker = self.down.pop()
            self.stage.start(worker)

    def fail_disk(self) -> None:
        where, left = self.random.choice(["/topics/", "/cursors/"]), [self.random.choice([1, 3])]
        kind = self.random.choice(["sync", "write"])

        def happens(operation: str, path: str) -> None:
            if operation == kind and where in path and left[0]:
                left[0] -= 1
                raise OSError(5, "Input/output error")

        self.stage.disk.on_operation = happens

    def hold(self) -> None:
        nodes = ["broker", *(f"worker-{worker}" for worker in range(len(self.stage.endpoints)))]
        sender, receiver = self.random.choice(nodes), self.random.choice(nodes)
        if (sender, receiver) in self.stage.held:
            self.stage.let_go(sender, receiver)
        elif sender != receiver and len(self.stage.held) < 2:
            self.stage.hold(sender, receiver)
        for pair in [pair for pair in self.stage.held if self.random.random() < 0.4]:
            self.stage.let_go(*pair)

    def lose_mail(self) -> None:
        self.stage.holding.clear()  # as if the mail had waited for so long that it was dropped

    def slow_disk(self) -> None:
        self.stage.loop.holds_work = not self.stage.loop.holds_work

    def half_turns(self) -> None:
        for _ in range(self.random.randint(1, 4)):
            self.stage.loop.once()

    def finish(self) -> None:
        """End all faults, and check that nothing was lost."""
        stage = self.stage
        stage.disk.on_operation = None
        stage.loop.holds_work = False
        for pair in list(stage.held):
            stage.let_go(*pair)
        while self.down:
            self.start()
        stage.advance(5)
        total = sum(producer.sequence for producer in self.producers)
        for _ in range(200):
            for agent in self.agents:
                agent.pump()
                if not agent.open:
                    agent.connect()
            for consumer in self.consumers:
                consumer.act(everything=True)
            stage.advance(0.5)
            done = not any(producer.unresolved for producer in self.producers)
            if (
                done
                and all(len(group.delivered) == total for group in self.groups)
                and self.cursors() == {total}
            ):
                break
        assert not any(producer.unresolved for producer in self.producers), "no receipt"
        shown = stage.client().request("topic.show", topic="orders")
        assert shown["next_offset"] == total, "a batch was stored twice, or not at all"
        for group in self.groups:
            missing = set(range(total)) - group.delivered
            assert not missing, f"{group.name} never got {sorted(missing)[:10]}"
        for producer in self.producers:
            for sequence, offset in producer.receipts.items():
                self.told_durable(offset, producer.batches[sequence])
        assert self.cursors() == {total}

    def cursors(self) -> set[int]:
        client = self.stage.client()
        return {
            client.request("subscription.show", topic="orders", subscription=group.name)["cursor"]
            for group in self.groups
        }


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_nothing_acknowledged_is_lost(seed: int, tmp_path: Path) -> None:
    """Receipts hold, offsets are dense and assigned once, order has no gaps, and every subscription gets everything."""
    play = Play(tmp_path, seed)
    for _ in range(STEPS):
        play.step()
    play.finish()
    play.stage.close()
