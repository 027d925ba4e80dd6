"""User programs: producers that send, consumers that work on what they get, each in its own way.

A program is a few timers over one client. It uses what `ister.Client` offers and never waits; whatever a client raises,
the program starts over as a user would. Everything random comes from its world's random numbers.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from ister.consumer import Consumer
from ister.errors import IsterError
from ister.message import Message
from ister.opening import ConsumerArguments
from ister.outstanding import Request
from ister.producer import Producer
from ister.reader import Reader
from ister.requests import about
from tests.sim.clients import SimClient
from tests.sim.limits import wall_ms
from tests.sim.model import Sent, SubscriptionModel, TopicModel
from tests.sim.oracle import identity_of

if TYPE_CHECKING:
    from tests.sim.world import World

BACK_S = 0.3  # a program that was evicted returns after this


class Program:
    """A program with a client."""

    def __init__(self, world: World, machine: str) -> None:
        self.world, self.machine = world, machine
        self.random: Random = world.random
        self.name = world.next_name(type(self).__name__[0].lower())
        self.client: SimClient | None = None
        self.gone = False  # for good
        self._step_due = False
        self.connect()

    def connect(self) -> None:
        """Create a client, and open what the program opens."""
        self.client = self.world.new_client(self.machine)
        self.client.network.on_progress = self.on_progress
        self.open()
        self.world.trace.note("connect", self.name)

    def open(self) -> None:
        raise NotImplementedError

    def on_progress(self) -> None:
        """Something has arrived."""

    def later(self, seconds: float, call: Any) -> None:
        """Do something later, unless the program is gone then; if it is stopped, when it continues."""
        client = self.client

        def run() -> None:
            if self.gone or self.client is not client or client is None:
                return
            if client.network.frozen:
                self.later(0.1, call)
            else:
                call()

        self.world.after(seconds, run)

    # ---- what may happen to it ----------------------------------------------------------------------------------

    @property
    def here(self) -> bool:
        """Whether it has a client."""
        return self.client is not None and not self.gone

    def leave(self, how: str) -> None:
        """End the client: with a goodbye, killed, or with its machine."""
        client, self.client = self.client, None
        if client is None:
            return
        self.world.trace.note("leave", self.name, how)
        if how == "goodbye":
            client.network.close()
            client.network.vanished = True
        elif how == "killed":
            client.network.die()
        else:
            client.network.vanish()

    def come_back(self) -> None:
        """Start the program again."""
        if self.client is None and not self.gone:
            self.connect()

    def again(self, seconds: float = BACK_S) -> None:
        """Start over after an error."""
        self.leave("goodbye")
        self.world.after(seconds, self.come_back)


@dataclass(slots=True)
class ProducerWays:
    """How a producer sends."""

    every_s: float
    burst: int
    keys: int  # how many keys; 0: none
    attributes: bool = False
    batches: bool = False
    linger_ms: float = 1.0
    sizes: tuple[int, ...] = (0, 3, 200)
    delays_ms: tuple[int, ...] = ()
    named: bool = True


class Producing(Program):
    """A program that sends a number of messages to one topic."""

    def __init__(self, world: World, machine: str, topic: TopicModel, ways: ProducerWays, left: int) -> None:
        self.topic, self.ways, self.left = topic, ways, left
        self.number = 0
        self.waiting = 0  # messages without a receipt
        self.producer: Producer | None = None
        super().__init__(world, machine)

    def open(self) -> None:
        assert self.client is not None
        self.waiting = 0
        self.producer = self.client.opener.producer(
            self.topic.name,
            batch_bytes=2000,
            linger_ms=self.ways.linger_ms,
            name=self.name if self.ways.named else None,
        ).made
        self.later(self.ways.every_s * self.random.random(), self.send)

    def send(self) -> None:
        """Send some, and again later."""
        producer = self.producer
        assert producer is not None
        if self.left <= 0 or self.world.quiet:
            return
        self.later(self.ways.every_s * (0.5 + self.random.random()), self.send)
        if self.world.resting:
            return
        if not producer.publication.opened and self.random.random() < 0.5:
            return  # most programs wait until they are connected
        try:
            for _ in range(self.random.randint(1, self.ways.burst)):
                if self.left <= 0:
                    return
                if self.ways.batches and self.random.random() < 0.5:
                    self._send_batch(producer)
                else:
                    self._send_one(producer)
        except IsterError as error:
            self.world.counts[f"producer {error.code}"] += 1
            self.again()

    def _message(self) -> tuple[bytes, bytes, dict[str, str] | None, int]:
        random, ways = self.random, self.ways
        identity = b"%s/%s/%d" % (self.topic.name.encode(), self.name.encode(), self.number)
        self.number += 1
        key = b"k%d" % min(random.randrange(ways.keys), random.randrange(ways.keys)) if ways.keys else b""
        if ways.keys and random.random() < 0.1:
            key = b""
        attributes = {"n": str(self.number)} if ways.attributes and random.random() < 0.5 else None
        now_ms = self.world.clock.time_ms()
        due = now_ms + random.choice(ways.delays_ms) if ways.delays_ms and random.random() < 0.4 else 0
        payload = identity + b" " + bytes(random.choice(ways.sizes))
        self.world.oracle.sent[identity] = Sent(
            self.topic.name, identity, key, due, self.world.clock.now_s, len(payload)
        )
        return payload, key, attributes, due

    def _send_one(self, producer: Producer) -> None:
        number = self.number
        payload, key, attributes, due = self._message()
        receipt = producer.try_send(payload, key or None, attributes, due)
        if receipt is None:  # the window is full: the message was not accepted
            self.number = number
            return
        self._sent(1, receipt)

    def _send_batch(self, producer: Producer) -> None:
        number, count = self.number, min(self.left, self.random.randint(2, 12))
        messages = [self._message() for _ in range(count)]
        keys = [key or None for _, key, _, _ in messages] if any(key for _, key, _, _ in messages) else None
        times = [due or None for _, _, _, due in messages] if any(due for _, _, _, due in messages) else None
        packed = producer.pack([payload for payload, _, _, _ in messages], keys, None, times)
        receipt = producer.try_batch(packed)
        if receipt is None:
            self.number = number
            return
        self._sent(count, receipt)

    def _sent(self, count: int, receipt: Any) -> None:
        self.left -= count
        self.waiting += count
        self.world.counts["messages sent"] += count
        producer = self.producer

        def answered(receipt: Any) -> None:
            if producer is self.producer:
                self.waiting -= count

        receipt.add_done_callback(answered)

    def on_progress(self) -> None:
        producer = self.producer
        if producer is not None and producer.publication.phase == "closed" and self.here:
            error = producer.publication.error
            self.world.counts[f"producer {error.code if error else 'closed'}"] += 1
            if error is not None and error.code == "fenced":
                self.left, self.gone = 0, True
            self.again()

    @property
    def done(self) -> bool:
        """Whether everything it sent was answered."""
        return self.client is None or self.waiting == 0


@dataclass(slots=True)
class ConsumerWays:
    """How a consumer works."""

    think_s: float = 0.01  # for what it takes at once
    take: int = 10  # deliveries at once
    credit: int | None = 50  # None: follows its pace
    credit_bytes: int = 1 << 20
    ack: str = "each"  # each, batch, until, scattered
    nack: float = 0.0  # probability that it refuses one
    nack_delay_s: tuple[float, ...] = (0.0, 0.2)
    forget: float = 0.0  # probability that it neither acknowledges nor refuses
    confirm: float = 0.1  # probability that it waits until its acknowledgments are stored
    priority: int = 0
    force: bool = False  # takes an Exclusive subscription over, now and then
    extend: float = 0.0  # probability that it extends what it keeps
    close: float = 0.0  # probability, after each work, that it closes and opens again
    takers: tuple[str, ...] = ("batch",)  # how it takes, in turn: batches, a few messages, single ones
    options: dict[str, Any] = field(default_factory=dict)


class Consuming(Program):
    """A program that consumes one subscription."""

    def __init__(
        self,
        world: World,
        machine: str,
        subscription: SubscriptionModel,
        ways: ConsumerWays,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.subscription, self.ways = subscription, ways
        self.settings = settings or {}  # the options with which it creates the subscription
        self.consumer: Consumer | None = None
        self.hands: deque[Message] = deque()
        self.turn = 0
        self.working = self.forgot = False
        super().__init__(world, machine)

    def open(self) -> None:
        assert self.client is not None
        ways, subscription = self.ways, self.subscription
        self.hands.clear()
        self.working = self.forgot = False
        asked = ConsumerArguments(
            subscription=subscription.name,
            type=subscription.kind,  # type: ignore[arg-type]
            start="earliest",
            priority=ways.priority,
            force=ways.force and self.random.random() < 0.5 and not self.world.quiet,
            credit_messages=ways.credit,
            credit_bytes=ways.credit_bytes,
            settings=self.settings,
        )
        self.consumer = self.client.opener.consumer(subscription.topic.name, asked).made

    def on_progress(self) -> None:
        if not self.working and self.here:
            self.working = True
            think_s = 0.01 if self.world.quiet else self.ways.think_s
            self.later(think_s * self.random.random(), self.work)

    def finish(self) -> None:
        """Acknowledge everything that is there and comes: the faults are over."""
        if self.here and not self.working:
            self.work()

    def work(self) -> None:
        """Take what has arrived, and process it."""
        consumer = self.consumer
        assert consumer is not None
        self.working = False
        try:
            taken = 0
            while (taken < self.ways.take or self.world.quiet) and (
                messages := self._take(consumer)
            ) is not None:
                taken += 1
                self.world.counts["messages handed out"] += len(messages)
                self.hands.extend(messages)
            self._settle(consumer)
            if self.random.random() < self.ways.confirm:
                self._confirm(consumer)
            if taken and self.random.random() < self.ways.close and not self.world.quiet:
                self.world.counts["consumers closed"] += 1
                self.again()
                return
            if consumer.has_news():
                self.on_progress()
        except IsterError as error:
            self.world.counts[f"consumer {error.code}"] += 1
            self.again(2.0 if error.code in ("subscription-busy", "taken-over") else BACK_S)

    def _confirm(self, consumer: Consumer) -> None:
        """Ask the broker to confirm when the acknowledgments are stored."""
        consumer.written()
        consumer._soon()

    def _take(self, consumer: Consumer) -> list[Message] | None:
        """Take what is next, as the taker whose turn it is; several share the consumer."""
        self.turn += 1
        how = self.ways.takers[self.turn % len(self.ways.takers)]
        if how == "one":
            message = consumer.try_receive()
            return None if message is None else [message]
        batch = consumer.try_batch(3 if how == "few" else None)
        return None if batch is None else list(batch)

    def _settle(self, consumer: Consumer) -> None:
        random, ways, hands = self.random, self.ways, self.hands
        if self.world.quiet and self.forgot:
            self.forgot = False
            self.again()  # references that will not be used again are dropped
            return
        if not hands:
            return
        if self.world.quiet:
            consumer.ack(list(hands))
            hands.clear()
            return
        keep: list[Message] = []
        good: list[Message] = []
        while hands:
            message = hands.popleft()
            fate = random.random()
            if fate < ways.nack:
                consumer.nack(message, random.choice(ways.nack_delay_s), "no reason")
            elif fate < ways.nack + ways.forget:
                self.forgot = True
            else:
                good.append(message)
        if ways.ack == "until" and good:
            consumer.ack_until(max(good, key=lambda message: message.offset))
        elif ways.ack == "scattered":
            random.shuffle(good)
            keep = good[: len(good) // 3]
            for message in good[len(keep) :]:
                consumer.ack(message)
        elif ways.ack == "batch" and good:
            consumer.ack(good)
        else:
            for message in good:
                consumer.ack(message)
        hands.extend(keep)
        if keep:
            if random.random() < ways.extend:
                consumer.extend(*keep)
            self.later(0.05, self.on_progress)


class Reading(Program):
    """A program that reads a topic from its beginning, without a subscription, and knows its position."""

    def __init__(self, world: World, machine: str, topic: TopicModel, think_s: float, credit: int) -> None:
        self.topic, self.think_s, self.credit = topic, think_s, credit
        self.next = 0
        self.reader: Reader | None = None
        self.working = False
        self.behind = False  # what it was to read next has been removed
        super().__init__(world, machine)

    def open(self) -> None:
        assert self.client is not None
        self.working = False
        start = "earliest" if self.behind else self.next or "earliest"
        plan = self.client.opener.reader(self.topic.name, start=start, credit_messages=self.credit)  # type: ignore[arg-type]
        self.reader = plan.made

    def on_progress(self) -> None:
        if not self.working and self.here:
            self.working = True
            self.later(self.think_s * self.random.random(), self.work)

    def work(self) -> None:
        """Read what has arrived: each message once, in order."""
        reader = self.reader
        assert reader is not None
        self.working = False
        try:
            batch = reader.try_batch()
            for event in list(reader.events) if self.topic.lost else ():
                if event.code in ("skipped", "missing") and event.offset is not None:
                    self.topic.told.update(range(event.offset, event.offset + event.count))
            if batch is None:
                return
            for message in batch:
                skipped = range(self.next, message.offset)
                if message.offset < self.next or not self.world.oracle.all_may_be_gone(self.topic, skipped):
                    self.world.oracle.violated(
                        f"{self.name}: a reader of {self.topic.name} gets {message.offset} where {self.next} is due"
                    )
                self.world.oracle.is_at(self.topic, message.offset, identity_of(message.payload), "a reader")
                self.next = message.offset + 1
            self.world.counts["messages read"] += len(batch)
            self.on_progress()
        except IsterError as error:
            self.world.counts[f"reader {error.code}"] += 1
            self.behind = error.code == "offset-out-of-range"
            self.again()

    @property
    def done(self) -> bool:
        """Whether it has read everything that is not too old."""
        return self.world.oracle.all_may_be_gone(self.topic, range(self.next, self.topic.end))


class Deleting(Program):
    """An operator who finds a topic fenced, and deletes it at this broker."""

    def __init__(self, world: World, machine: str, topic: TopicModel) -> None:
        self.topic = topic
        self.asked: Request | None = None
        super().__init__(world, machine)

    def open(self) -> None:
        self.later(0.5, self.look)

    def look(self) -> None:
        """Delete it once it belongs to another broker."""
        if self.asked is not None and self.asked.done and self.asked.error is None:
            return
        self.later(0.5, self.look)
        actors = self.world.machines[self.machine].actors("topic", self.topic.name)
        failures = [getattr(actor, "failure", None) for actor in actors]
        fenced = any(failure is not None and failure.code == "fenced" for failure in failures)
        if self.client is not None and fenced and (self.asked is None or self.asked.done):
            self.asked = Request("topic.delete", {"topic": self.topic.name})
            self.world.counts["operator topic.delete"] += 1
            self.client.send_request(self.asked)

    @property
    def done(self) -> bool:
        """Always true: nothing waits for it."""
        return True


class Operating(Program):
    """An operator who moves, pauses and unblocks subscriptions, one after the other."""

    def __init__(
        self, world: World, machine: str, does: list[str], subscriptions: list[SubscriptionModel]
    ) -> None:
        self.does, self.subscriptions = does, subscriptions
        self.asked: Request | None = None
        self.paused: SubscriptionModel | None = None
        super().__init__(world, machine)

    def open(self) -> None:
        self.later(1.0, self.decide)

    def decide(self) -> None:
        """Do one thing, once the one before is answered."""
        self.later(0.2 + self.random.random(), self.decide)
        if self.world.resting or (self.asked is not None and not self.asked.done):
            return
        if self.asked is not None and self.asked.error is not None:
            self.world.counts[f"operator {self.asked.error.code}"] += 1
            if self.asked.operation == "subscription.seek":  # an operator whose request failed looks first
                self.does = [each for each in self.does if each != "seek"] or ["nothing"]
        if self.paused is not None:
            self._ask("subscription.update", self.paused, paused=0)
            self.paused = None
            return
        blocking = [each for each in self.subscriptions if each.options.get("poison") == "block"]
        if blocking and ("unblock" in self.does or self.world.quiet):
            action = "retry" if self.world.quiet else self.random.choice(("retry", "drop", "dead-letter"))
            self._ask("subscription.unblock", self.random.choice(blocking), action=action)
        if self.world.quiet:
            return
        subscription, what = self.random.choice(self.subscriptions), self.random.choice(self.does)
        if what in ("limit", "lift"):
            self._limit(subscription.topic, lift=what == "lift")
            return
        if what == "seek":
            to: str | int = self.random.choice(("earliest", self.random.randint(0, subscription.topic.end)))
            if self.world.more.random() < 0.4:
                to = subscription.topic.end  # over messages that are not acknowledged yet
            if self.world.plan.steps_clocks and self.world.more.random() < 0.7:
                to = f"time:{self._moment()}"
            self._ask("subscription.seek", subscription, to=to)
        elif what == "pause":
            self.paused = subscription
            self._ask("subscription.update", subscription, paused=1)

    def _moment(self) -> int:
        """Return a time that the broker's clock has shown."""
        clock, now_s = self.world.oracle.clocks[self.machine], self.world.clock.now_s
        off_ms = self.world.more.choice(clock.steps)[1]
        return wall_ms(now_s - self.world.more.choice((0.0, 0.5, 2.0, 5.0)), off_ms)

    def _limit(self, topic: TopicModel, *, lift: bool) -> None:
        """Set another limit of the topic, or remove all limits."""
        random = self.world.more
        if lift:
            limits = dict.fromkeys(topic.limits.of, 0)
        else:
            name = random.choice(("retention_ms", "retention_bytes", "message_ttl_ms"))
            limits = {name: random.choice((3000, 20_000) if name == "retention_bytes" else (300, 1500))}
        if limits and self.client is not None:
            self.asked = Request("topic.update", {"topic": topic.name, **limits})
            self.world.counts["operator topic.update"] += 1
            self.client.send_request(self.asked)

    def _ask(self, operation: str, subscription: SubscriptionModel, **more: Any) -> None:
        client = self.client
        assert client is not None
        self.asked = about(operation, subscription.topic.name, subscription.name, **more)
        self.world.counts[f"operator {operation}"] += 1
        client.send_request(self.asked)

    @property
    def done(self) -> bool:
        """Whether no request is open and nothing is paused."""
        return self.paused is None and (self.asked is None or self.asked.done)
