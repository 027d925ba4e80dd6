"""The oracle: it sees every frame that enters or leaves the broker, keeps a model, and reports violations.

It knows when the broker was told something and when the broker said something, and does not ask what the broker did in
between. Where a frame may have been read or not (a connection that broke, a process that died), both are right.

What it checks
- a receipt means stored: one offset per message, one message per offset, the same for everybody who is told
- a message is held by one consumer at a time, and comes again only when none holds it
- a message whose acknowledgment was confirmed does not come again; one that was only acknowledged, after a restart at
  most
- Exclusive and Failover see no gap; a key is with one consumer, in order; no consumer with credit is passed over for
  ever
- deliveries do not exceed the credit; none comes before its time; no attempt is counted that was not made
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from ister.bodies import split_column, split_payloads, split_times
from ister.errors import IsterError
from ister.wire import OFFSET_UNKNOWN, Column, Key, Type, decode_header, decode_result
from tests.sim.limits import MESSAGE_BYTES, SEGMENT_BYTES, WallClock
from tests.sim.links import SimRouter
from tests.sim.model import (
    PASSED_OVER_MAX,
    ConsumerModel,
    Hold,
    PatternModel,
    Sent,
    SessionModel,
    SubscriptionModel,
    TopicModel,
)
from tests.sim.segments import SegmentNames
from tests.sim.trace import Trace
from tests.stage import StagedClock

VIOLATIONS_MAX = 20
WAITS_S = (
    # seconds; deliveries that wait for a full connection are sent at most this late, whatever was acknowledged
    # meanwhile
    1.0
)

RESUME_WITHIN_MS = 3000  # after this, other consumers may get what the session of a lost connection holds


def identity_of(payload: bytes) -> bytes:
    """Return the identity in a payload."""
    return payload.partition(b" ")[0]


def _is_of_before(consumer: ConsumerModel, kind: int, header: dict[int, Any]) -> bool:
    """Say whether a frame is about what was delivered before a move, of which its client had not heard."""
    told = consumer.moves
    about = kind in (Type.ACK, Type.ACK_UNTIL, Type.NACK, Type.EXTEND)
    return about and told is not None and header.get(Key.SOUGHT, 0) < told


def _offsets(header: dict[int, Any]) -> list[int]:
    """Return the offsets of a DELIVER."""
    if Key.RANGES in header:
        flat = header[Key.RANGES]
        return [o for low, high in zip(flat[::2], flat[1::2], strict=True) for o in range(low, high)]
    return list(range(header[Key.OFFSET], header[Key.OFFSET] + header[Key.COUNT]))


class Oracle:
    """The `Tap` of every worker's socket; keeps `violations`."""

    def __init__(self, clock: StagedClock, trace: Trace, session_timeout_s: float) -> None:
        self.clock, self.trace = clock, trace
        self.session_timeout_s = session_timeout_s
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self.topics: dict[str, TopicModel] = {}
        self.clocks: dict[str, WallClock] = {}  # by machine
        self.subscriptions: dict[tuple[str, str, str], SubscriptionModel] = {}
        self.sent: dict[bytes, Sent] = {}  # by identity
        self.has_store = False
        self.segments = SegmentNames()
        # of topics that are created again: the oldest generation that may exist
        self._lowest: dict[str, int] = {}
        # the generations that a message was published to; None: any
        self._published: dict[bytes, set[int | None]] = {}
        self._owners: dict[tuple[str, int], SessionModel] = {}  # the session that opened a producer last
        # (topic, producer, sequence): what was sent, and in which session
        self._batches: dict[tuple[str, int, int], tuple[list[bytes], SessionModel]] = {}
        self._asked: dict[tuple[bytes, int], tuple[SubscriptionModel, str, dict[str, Any]]] = {}
        self._limiting: dict[tuple[bytes, int], tuple[TopicModel, dict[str, Any]]] = {}
        self._sessions: dict[tuple[str, bytes], SessionModel] = {}  # (machine, routing id)
        self._tokens: dict[tuple[str, bytes], SessionModel] = {}

    def violated(self, what: str) -> None:
        """Note a violation."""
        self.trace.note("VIOLATION", what)
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(f"at {self.clock.now_s:.6f}: {what}")

    # ---- mail and events ----------------------------------------------------------------------------------------

    def add_topic(self, topic: TopicModel) -> TopicModel:
        """A topic exists."""
        self.topics[topic.name] = topic
        return topic

    def make_anew(self, topic: TopicModel) -> None:
        """A topic is about to be created under a name that does not exist, and may have existed."""
        self._lowest.setdefault(topic.name, 0)
        self.topics[topic.name] = topic
        for place in [each for each in self.subscriptions if each[1] == topic.name]:
            del self.subscriptions[place]

    def deleted(self, topic: str) -> None:
        """A client was told that a topic is deleted."""
        self._lowest[topic] = self.topics[topic].generation + 1

    def add_subscription(
        self, machine: str, topic: str, name: str, kind: str, options: dict[str, Any]
    ) -> SubscriptionModel:
        """A subscription exists, which begins at the earliest message."""
        found = SubscriptionModel(machine, self.topics[topic], name, kind, options)
        for before in self.subscriptions.values():
            if (before.topic.name, before.name) == (topic, name):
                found.before = before
        self.subscriptions[machine, topic, name] = found
        return found

    def add_pattern(
        self, pattern: str, subscription: str, kind: str, start: str, options: dict[str, Any]
    ) -> PatternModel:
        """A pattern exists, whose consumers begin at `start` on topics that are not known to be later."""
        return PatternModel(pattern, subscription, kind, start, options)

    def follow(self, machine: str, pattern: PatternModel, topic: TopicModel) -> None:
        """A topic is about to be created that matches a pattern."""
        found = self.add_subscription(
            machine, topic.name, pattern.subscription, pattern.kind, pattern.options
        )
        found.follows = pattern
        if pattern.start == "latest" and pattern.first_s >= topic.created_s:
            found.begin = None

    def of_machine(self, machine: str) -> list[SubscriptionModel]:
        """Return the subscriptions of a broker."""
        return [each for each in self.subscriptions.values() if each.machine == machine]

    def worker_died(self, machine: str, worker: int, lives_at: dict[tuple[str, str], int]) -> None:
        """A worker died, with its sessions and its subscriptions' state; `lives_at` says where each one runs."""
        for token, session in list(self._tokens.items()):
            if session.machine == machine and session.worker == worker:
                self._end(session)
                del self._tokens[token]
        for subscription in self.of_machine(machine):
            here = lives_at.get((subscription.topic.name, subscription.name)) == worker
            if here or subscription.topic.strategy != "reliable":  # its offsets start over with its topic
                subscription.disturb(self.clock.now_s)

    def disturbed(self, machine: str) -> None:
        """A disk or an actor failed: what any consumer holds may come again."""
        for subscription in self.of_machine(machine):
            subscription.disturb(self.clock.now_s)

    def power_lost(self, machine: str) -> None:
        """Everything that was written and not synced may be lost."""
        for subscription in self.of_machine(machine):
            subscription.disturb(self.clock.now_s)
            subscription.forget_confirmed()

    def named(self, machine: str, path: str) -> None:
        self.segments.named(machine, path)

    def unnamed(self, machine: str, path: str) -> None:
        self.segments.unnamed(machine, path)

    def lost(self, machine: str, names: list[str]) -> None:
        self.segments.lost(machine, names)

    # ---- to the broker ------------------------------------------------------------------------------------------

    def to_broker(self, router: SimRouter, routing: bytes, parts: list[bytes]) -> None:
        try:
            header = decode_header(parts[0])
        except IsterError:
            return
        machine, kind = router.machine, header[Key.TYPE]
        self.trace.note(
            "up", machine, routing[1:].decode(), kind, header.get(Key.HANDLE, -1), sum(map(len, parts))
        )
        if kind == Type.HELLO:
            self._hello(machine, router.number, routing)
            return
        session = self._sessions.get((machine, routing))
        if session is None or session.ended:
            return
        session.heard_s = self.clock.now_s
        if kind == Type.BYE:
            self._end(session)
        elif kind == Type.PUBLISH:
            self._publish(session, header, parts[1:])
        elif kind == Type.OPEN_PRODUCER:
            producer = session.producers[header[Key.HANDLE]] = (header[Key.TOPIC], header[Key.PRODUCER])
            session.asked_in[header[Key.HANDLE]] = self._lowest.get(header[Key.TOPIC], 0)
            session.of.pop(header[Key.HANDLE], None)
            self._owners[producer] = session
        elif kind == Type.OPEN_CONSUMER:
            self._open_consumer(session, header)
        elif kind == Type.REQUEST:
            self._request(session, header)
        elif kind == Type.CLOSE and header[Key.HANDLE] in session.producers:
            session.of.pop(header[Key.HANDLE], None)
        elif header.get(Key.HANDLE) in session.unclear:
            self._unclear_frame(session.unclear[header[Key.HANDLE]], kind, header)
        elif Key.HANDLE in header and (consumer := session.consumers.get(header[Key.HANDLE])) is not None:
            if _is_of_before(consumer, kind, header):
                consumer.pending.append((header.get(Key.REF), [], {}))
            else:
                self._consumer_frame(consumer, kind, header)

    def _hello(self, machine: str, worker: int, routing: bytes) -> None:
        before = self._sessions.pop((machine, routing), None)
        if before is not None:
            for subscription in {
                id(c.subscription): c.subscription for c in before.consumers.values()
            }.values():
                for consumer in before.consumers.values():
                    subscription.release(consumer, self.clock.now_s)

    def _end(self, session: SessionModel) -> None:
        session.ended = True
        for consumer in session.consumers.values():
            self._gone(consumer)

    def _gone(self, consumer: ConsumerModel) -> None:
        subscription = consumer.subscription
        subscription.release(consumer, self.clock.now_s)
        consumer.opened = False
        if consumer in subscription.consumers:
            subscription.consumers.remove(consumer)

    def _publish(self, session: SessionModel, header: dict[int, Any], body: list[bytes]) -> None:
        producer = session.producers.get(header[Key.HANDLE])
        if producer is None:
            return
        payloads = body if len(body) == 1 else split_payloads(body[0], body[1])
        identities = [identity_of(payload) for payload in payloads]
        if self._owners.get(producer) is not session:
            return  # fenced: another program continues under this name
        if producer[0] in self._lowest:
            of = session.of.get(header[Key.HANDLE])
            for identity in identities:
                self._published.setdefault(identity, set()).add(None if of is None else of.generation)
        place = (*producer, header[Key.SEQUENCE])
        known, owner = self._batches.get(place, (identities, session))
        if known != identities and owner is session:
            self.violated(
                f"a client resent sequence {header[Key.SEQUENCE]} of {producer} as {identities}, not {known}"
            )
        self._batches[place] = identities, session

    def _request(self, session: SessionModel, header: dict[int, Any]) -> None:
        arguments = header.get(Key.ARGUMENTS, {})
        if header[Key.OPERATION] == "topic.update":
            asked = session.token, header[Key.REF]
            topic = self.topics[arguments["topic"]]
            if asked not in self._limiting:
                self._limiting[asked] = topic, arguments
                topic.limits.ask(arguments, self.clock.now_s)
            return
        place = (session.machine, arguments.get("topic", ""), arguments.get("subscription", ""))
        subscription = self.subscriptions.get(place)
        if subscription is None:
            return
        operation = header[Key.OPERATION]
        self._asked[session.token, header[Key.REF]] = (subscription, operation, arguments)
        if operation == "subscription.seek":
            subscription.may_move(self.clock.now_s)
        elif operation == "subscription.unblock":
            subscription.not_before.clear()  # what blocks is tried again at once
            subscription.written_waits.clear()
        elif operation == "subscription.update" and arguments.get("paused") == 0:
            subscription.paused_s = None

    def _answered(self, session: SessionModel, header: dict[int, Any], result: dict[str, Any] | None) -> None:
        question = session.token, header.get(Key.REF, -1)
        limited, asked = self._limiting.pop(question, None), self._asked.pop(question, None)
        if limited is not None:
            topic, arguments = limited
            everywhere = result is not None and (
                (len(self.clocks) == 1 and not self.has_store) or result["settings_stored"]
            )
            topic.limits.answer(arguments, self.clock.now_s, done=result is not None, everywhere=everywhere)
        if asked is None:
            return
        subscription, operation, arguments = asked
        if operation == "subscription.seek":
            to = str(arguments["to"])
            if to.startswith("time:") and result is not None:
                time_ms = int(to.removeprefix("time:"))
                subscription.topic.sought.append((str(subscription), time_ms, result["position"]))
            subscription.moved(None if result is None else result["position"], self.clock.now_s)
        elif operation == "subscription.update" and result is not None and arguments.get("paused") == 1:
            subscription.paused_s = self.clock.now_s

    def _open_consumer(self, session: SessionModel, header: dict[int, Any]) -> None:
        place = (session.machine, header[Key.TOPIC], header[Key.SUBSCRIPTION])
        subscription = self.subscriptions.get(place)
        if subscription is None:
            return
        consumer = session.consumers.get(header[Key.HANDLE])
        session.unclear.pop(header[Key.HANDLE], None)
        if consumer is None:
            consumer = session.consumers[header[Key.HANDLE]] = ConsumerModel(
                session, header[Key.HANDLE], subscription
            )
        subscription.opens += 1
        consumer.opening, consumer.closing = header, False
        consumer.asked_in = self._lowest.get(header[Key.TOPIC], 0)
        consumer.priority = header.get(Key.PRIORITY, 0)
        subscription.release(consumer, self.clock.now_s)

    def _unclear_frame(
        self, subscriptions: list[SubscriptionModel], kind: int, header: dict[int, Any]
    ) -> None:
        """Handle an acknowledgment or refusal that belongs to a topic or to its successor."""
        flat = header.get(Key.RANGES, [])
        if kind == Type.ACK_UNTIL:
            flat = [0, header[Key.OFFSET] + 1]
        for subscription in subscriptions if kind in (Type.ACK, Type.ACK_UNTIL, Type.NACK) else ():
            for first, end in zip(flat[::2], flat[1::2], strict=True):
                subscription.delayed.update(range(first, end))
                if kind != Type.NACK:
                    subscription.acknowledged.update(range(first, end))

    def _unclear_delivery(self, subscriptions: list[SubscriptionModel], header: dict[int, Any]) -> None:
        for subscription in subscriptions:
            offsets = _offsets(header)
            subscription.unsure.update(offsets)
            subscription.delayed.update(offsets)
            subscription.ever.update(offsets)

    def _consumer_frame(self, consumer: ConsumerModel, kind: int, header: dict[int, Any]) -> None:
        subscription = consumer.subscription
        if kind == Type.CLOSE:
            consumer.closing = True
            subscription.release(consumer, self.clock.now_s)
        elif not consumer.opened or consumer.opening is not None:
            # repeated before it opens again: it counts if the earlier open had been finished
            if kind == Type.ACK:
                flat = header[Key.RANGES]
                for first, end in zip(flat[::2], flat[1::2], strict=True):
                    subscription.acknowledged.update(range(first, end))
            elif kind == Type.ACK_UNTIL:
                subscription.acknowledged.update(range(header[Key.OFFSET] + 1))
        elif kind == Type.CREDIT:
            consumer.taken = max(consumer.taken, header.get(Key.TAKEN, 0))
            if Key.TAKEN in header and Key.REF in header:
                consumer.alone.add(header[Key.TAKEN] - 1)
            consumer.credit += header[Key.MESSAGES]
            consumer.bytes_credit += header[Key.BYTES]
            consumer.ready_since_s = self.clock.now_s
        elif kind == Type.ACK:
            flat = header[Key.RANGES]
            ranges = list(zip(flat[::2], flat[1::2], strict=True))
            if consumer.moved:  # earlier deliveries do not count, or need not
                for first, end in ranges:
                    subscription.acknowledged.update(range(first, end))
                ranges = [
                    (o, o + 1) for first, end in ranges for o in range(first, end) if o in consumer.since
                ]
            self._acknowledged(consumer, ranges, header.get(Key.REF))
        elif kind == Type.ACK_UNTIL:
            end = header[Key.OFFSET] + 1
            if subscription.in_order and (not consumer.moved or end - 1 in consumer.since):
                ranges = self._seen_below(subscription, end)
            else:  # it may acknowledge what it held once, and may hold still
                subscription.acknowledged.update(offset for offset in consumer.given if offset < end)
                ranges = [
                    (offset, offset + 1)
                    for offset, hold in sorted(subscription.holds.items())
                    if offset < end and hold.consumer is consumer and self._definite(subscription, hold)
                ]
            self._acknowledged(consumer, ranges, header.get(Key.REF))
        elif kind == Type.NACK:
            self._given_back(consumer, header)
        elif kind == Type.EXTEND:
            self._extended(consumer, header)

    def _seen_below(self, subscription: SubscriptionModel, end: int) -> list[tuple[int, int]]:
        """Return what "everything up to here" means: without messages that wait undelivered for their time."""
        ranges: list[tuple[int, int]] = []
        at = subscription.begin or 0
        for offset in range(at, end):
            if not subscription.ever[offset] and self._may_wait(subscription.topic, offset):
                ranges.append((at, offset))
                at = offset + 1
        return [(first, stop) for first, stop in (*ranges, (at, end)) if first < stop]

    def _extended(self, consumer: ConsumerModel, header: dict[int, Any]) -> None:
        """Restart the timeout of messages that a consumer still works on, if it held them."""
        subscription, flat = consumer.subscription, header[Key.RANGES]
        if consumer.session.uncertain or not self._alive(consumer.session):
            return
        for first, end in zip(flat[::2], flat[1::2], strict=True):
            for offset in range(first, end):
                hold = subscription.holds.get(offset)
                if hold is not None and hold.consumer is consumer and self._definite(subscription, hold):
                    subscription.holds[offset] = hold._replace(at_s=self.clock.now_s)

    def _acknowledged(self, consumer: ConsumerModel, ranges: list[tuple[int, int]], ref: int | None) -> None:
        subscription = consumer.subscription
        certain = not consumer.session.uncertain and self._alive(consumer.session)
        for first, end in ranges:
            for offset in range(first, end):
                subscription.acknowledged.add(offset)
                subscription.acknowledged_since.add(offset)
                hold = subscription.holds.get(offset)
                if hold is not None and hold.consumer is consumer:
                    if certain and self._definite(subscription, hold):
                        subscription.settled.add(offset)
                    del subscription.holds[offset]
        waits: dict[int, float] = {}
        if ref is not None:
            waits, consumer.gave_back = consumer.gave_back, waits
        consumer.pending.append((ref, ranges, waits))

    def _given_back(self, consumer: ConsumerModel, header: dict[int, Any]) -> None:
        subscription, flat = consumer.subscription, header[Key.RANGES]
        certain = not consumer.session.uncertain and self._alive(consumer.session)
        least_ms = subscription.options.get("backoff_ms_min", 0)
        due = self.clock.now_s + header.get(Key.DELAY, least_ms) / 1000
        for first, end in zip(flat[::2], flat[1::2], strict=True):
            for offset in range(first, end):
                hold = subscription.holds.get(offset)
                subscription.delayed.add(offset)
                subscription.back_at[offset] = self.clock.now_s
                if hold is not None and hold.consumer is consumer:
                    if (
                        certain
                        and not subscription.moving
                        and self._definite(subscription, hold)
                        and offset not in subscription.acknowledged
                    ):
                        subscription.not_before[offset] = consumer.gave_back[offset] = due
                    del subscription.holds[offset]

    def _alive(self, session: SessionModel) -> bool:
        now = self.clock.now_s
        waits = now - session.closed_s < RESUME_WITHIN_MS / 1000
        return not session.ended and waits and now - session.heard_s < self.session_timeout_s

    def _definite(self, subscription: SubscriptionModel, hold: Hold) -> bool:
        """Return whether the broker must know that a consumer holds this message."""
        now, consumer = self.clock.now_s, hold.consumer
        return (
            now - hold.at_s < subscription.ack_timeout_s - 1e-6
            and hold.at_s - consumer.full_at_s
            >= subscription.ack_timeout_s  # otherwise it may have waited to be sent
            and self._alive(consumer.session)
            and hold.at_s > subscription.disturbed_s
        )

    # ---- from the broker ----------------------------------------------------------------------------------------

    def from_broker(self, router: SimRouter, routing: bytes, parts: list[bytes]) -> None:
        header = decode_header(parts[0])
        machine, kind = router.machine, header[Key.TYPE]
        self.trace.note(
            "down",
            machine,
            routing[1:].decode(),
            kind,
            header.get(Key.HANDLE, -1),
            header.get(Key.OFFSET, -1),
            sum(map(len, parts)),
        )
        if kind == Type.WELCOME:
            self._welcome(router, routing, header)
            return
        session = self._sessions.get((machine, routing))
        if session is None:
            return
        if kind == Type.RECEIPT:
            self._receipt(session, header)
            return
        consumer = session.consumers.get(header.get(Key.HANDLE, -1))
        if kind in (Type.RESULT, Type.ERROR) and Key.HANDLE not in header:
            self._answered(session, header, decode_result(parts[1]) if kind == Type.RESULT else None)
        elif kind == Type.DONE:
            self._done(session, header[Key.REF])
        elif header.get(Key.HANDLE) in session.producers:
            self._to_producer(session, kind, header)
        elif consumer is not None:
            self._to_consumer(consumer, kind, header, parts[1:])
        elif kind == Type.DELIVER and header[Key.HANDLE] in session.unclear:
            self._unclear_delivery(session.unclear[header[Key.HANDLE]], header)

    def _to_producer(self, session: SessionModel, kind: int, header: dict[int, Any]) -> None:
        handle = header[Key.HANDLE]
        if kind == Type.OPENED:
            topic = self.topics[session.producers[handle][0]]
            session.of[handle] = topic if session.asked_in[handle] >= topic.generation else None
        elif kind == Type.MOVED or (kind == Type.ERROR and header.get(Key.CLOSED)):
            session.of.pop(handle, None)

    def _to_consumer(
        self, consumer: ConsumerModel, kind: int, header: dict[int, Any], body: list[bytes]
    ) -> None:
        if kind == Type.DELIVER:
            self._deliver(consumer, header, body)
        elif kind == Type.OPENED:
            self._opened(consumer, header)
        elif kind == Type.EVENT:
            self._event(consumer, header)
        elif kind == Type.ERROR:
            self._error(consumer, header)
        elif kind == Type.MOVED:
            self._gone(consumer)
            del consumer.session.consumers[consumer.handle]

    def _error(self, consumer: ConsumerModel, header: dict[int, Any]) -> None:
        code, who = header[Key.CODE], f"{consumer} of {consumer.subscription}"
        self.counts[f"error {code}"] += 1
        if header.get(Key.CLOSED):
            self._gone(consumer)
            consumer.opening = None
            if code == "subscription-deleted":
                self.violated(f"{who} is told {code}: nobody deleted it by itself")
        elif code == "internal" and Key.REF in header and not consumer.opened:
            pass  # its request is answered after it was told that the broker failed for it
        elif code in ("ack-unknown", "internal", "malformed"):
            self.violated(f"{who} is told {code}: {header[Key.TEXT]}")

    def untold(self) -> list[str]:
        """Return the sessions that used a deleted topic and were not told, or were not answered."""
        found = []
        for session in self._tokens.values():
            if not self._alive(session) or session.uncertain:
                continue
            found += [
                f"a producer of {session.routing!r} was never told that {topic.name} is gone"
                for topic in session.of.values()
                if topic is not None and topic is not self.topics[topic.name]
            ]
            for consumer in session.consumers.values():
                topic = consumer.subscription.topic
                if not consumer.opened or consumer.closing or consumer.opening is not None:
                    continue
                if topic is not self.topics[topic.name]:
                    found.append(f"{consumer} was never told that {topic.name} is gone")
                if asked := [ref for ref, _ranges, _waits in consumer.pending if ref is not None]:
                    found.append(f"{consumer} of {consumer.subscription} asked for DONE in vain: {asked}")
        return found

    def refused(self, router: SimRouter, routing: bytes, parts: list[bytes]) -> None:
        session = self._sessions.get((router.machine, routing))
        if session is not None:
            session.uncertain = True
            for consumer in session.consumers.values():
                consumer.subscription.unseen += 1
                consumer.full_at_s = self.clock.now_s
            header = decode_header(parts[0])
            lost = session.consumers.get(header.get(Key.HANDLE, -1))
            if header[Key.TYPE] == Type.DELIVER and lost is not None:
                # it was handed out; if its consumer is lost it may have failed, and wait
                lost.subscription.delayed.update(_offsets(header))

    def closed(self, router: SimRouter, routing: bytes) -> None:
        session = self._sessions.get((router.machine, routing))
        if session is not None:
            session.closed_s = self.clock.now_s

    def _welcome(self, router: SimRouter, routing: bytes, header: dict[int, Any]) -> None:
        machine, token = router.machine, header[Key.SESSION]
        session = self._tokens.get((machine, token))
        if session is None:
            if header.get(Key.RESUMED):
                self.violated("a session is resumed that never was")
            session = SessionModel(token, machine, router.number, self.clock.now_s, routing)
            self._tokens[machine, token] = session
        elif not header.get(Key.RESUMED):
            self.violated("two sessions have one secret")
        self._sessions.pop((machine, session.routing), None)
        session.routing, session.heard_s, session.uncertain = routing, self.clock.now_s, False
        session.closed_s = float("inf")
        self._sessions[machine, routing] = session

    def _opened(self, consumer: ConsumerModel, header: dict[int, Any]) -> None:
        opening = consumer.opening
        if opening is None or opening[Key.REF] != header[Key.REF]:
            return
        if opening[Key.TOPIC] in self._lowest and not self._is_clear(consumer, opening):
            return
        subscription = consumer.subscription
        subscription.release(consumer, self.clock.now_s)
        if opening.get(Key.FORCE):
            for other in list(subscription.consumers):
                if other is not consumer:
                    self._gone(other)
        if subscription.by_consumers:
            subscription.began_s = min(subscription.began_s, self.clock.now_s)
        if subscription.follows is not None and subscription.began_s == float("inf"):
            self._begins(subscription, subscription.follows, header[Key.OFFSET])
        consumer.opening, consumer.opened = None, True
        consumer.moves = header.get(Key.SOUGHT)
        consumer.credit, consumer.bytes_credit = opening[Key.MESSAGES], opening[Key.BYTES]
        consumer.given.clear()
        consumer.places.clear()
        consumer.alone.clear()
        consumer.taken = 0
        consumer.reached = subscription.begin or 0
        consumer.pending.clear()
        consumer.gave_back.clear()
        consumer.passed_over = 0
        consumer.ready_since_s = self.clock.now_s
        if consumer not in subscription.consumers:
            subscription.consumers.append(consumer)

    def _is_clear(self, consumer: ConsumerModel, opening: dict[int, Any]) -> bool:
        """Note which topic of a name a consumer belongs to from now on; return False if it may be its successor's."""
        session, before = consumer.session, consumer.subscription
        newest = self.subscriptions[session.machine, opening[Key.TOPIC], opening[Key.SUBSCRIPTION]]
        if before is not newest:
            self._gone(consumer)
            consumer.subscription = newest
        if consumer.asked_in >= newest.topic.generation:
            return True
        self._gone(consumer)
        del session.consumers[consumer.handle]
        session.unclear[consumer.handle] = [before, newest]
        return False

    def _begins(self, subscription: SubscriptionModel, pattern: PatternModel, offset: int) -> None:
        """A pattern's subscription exists: on a topic that certainly came later, it begins at the beginning.

        Of a second request it may have delivered already what the answer to the first would have announced.
        """
        if pattern.alone and pattern.looked_s < subscription.topic.created_s:
            subscription.begin = 0
        if subscription.begin == 0 and offset and subscription.opens == 1:
            self.violated(f"{subscription} begins at {offset}: its topic came later, and is due from 0 on")
        subscription.begin, subscription.began_s = offset, self.clock.now_s
        if subscription.topic.name not in self._lowest:  # it may be gone again
            pattern.first_s = min(pattern.first_s, self.clock.now_s)

    def _event(self, consumer: ConsumerModel, header: dict[int, Any]) -> None:
        subscription, code = consumer.subscription, header[Key.CODE]
        self.counts[f"event {code}"] += 1
        if code == "active":
            subscription.active_since[consumer] = self.clock.now_s
        elif code == "standby":
            subscription.active_since.pop(consumer, None)
            subscription.release(consumer, self.clock.now_s)
        elif code == "sought":
            consumer.given.clear()
            consumer.since.clear()
            consumer.pending.clear()
            consumer.reached, consumer.moved = header[Key.OFFSET], True
            consumer.moves = header.get(Key.SOUGHT)
            subscription.release(consumer, self.clock.now_s)
        elif code == "recalled":
            consumer.credit = consumer.bytes_credit = 0
            # what waited comes back; what the program has in hand stays with it
            waited = subscription.release(consumer, self.clock.now_s, consumer.in_hand())
            subscription.delayed.update(waited)
        elif subscription.topic.lost and code in ("log-damaged", "skipped", "missing"):
            self._told(subscription, header[Key.OFFSET], header[Key.COUNT])
        elif code == "trimmed" and self._may_be_gone(subscription.topic, header[Key.OFFSET]):
            self._trimmed(subscription, header[Key.OFFSET], header[Key.COUNT])
        elif code in ("trimmed", "log-damaged"):
            self.violated(f"{consumer} of {subscription} is told {code}: {header.get(Key.TEXT)}")

    @staticmethod
    def _spoken_of(subscription: SubscriptionModel, offset: int, count: int) -> Iterator[int]:
        """Yield the unacknowledged offsets that an event is about: `count` of them from an offset on."""
        while count > 0 and offset < subscription.topic.end:
            count -= offset not in subscription.acknowledged
            yield offset
            offset += 1

    def _told(self, subscription: SubscriptionModel, offset: int, count: int) -> None:
        """Note that this many unacknowledged messages from an offset on cannot be read."""
        for each in self._spoken_of(subscription, offset, count):
            subscription.told.add(each)
            subscription.topic.told.add(each)

    def _trimmed(self, subscription: SubscriptionModel, offset: int, count: int) -> None:
        """Note that retention took unacknowledged messages, which do not block their keys any more."""
        for each in self._spoken_of(subscription, offset, count):
            if each in subscription.holds and self._may_be_gone(subscription.topic, each):
                subscription.taken_by_retention.add(each)

    def _done(self, session: SessionModel, ref: int) -> None:
        for consumer in list(session.consumers.values()):
            for at, (asked, _ranges, _waits) in enumerate(consumer.pending):
                if asked == ref:
                    for _ref, ranges, waits in consumer.pending[: at + 1]:
                        self._waits_written(consumer.subscription, waits)
                        for first, end in ranges:
                            consumer.subscription.confirmed.update(range(first, end))
                            consumer.subscription.settled.update(range(first, end))
                    del consumer.pending[: at + 1]
                    return

    def _waits_written(self, subscription: SubscriptionModel, given: dict[int, float]) -> None:
        """Note that refused messages wait as long after a restart, by the clock at that time."""
        if len(self.clocks[subscription.machine].steps) > 1:
            return
        for offset, due in given.items():
            if subscription.maybe_poison(offset):
                continue  # it blocks, or is gone; after a restart it is tried once more
            if subscription.not_before.get(offset) == due and due > self.clock.now_s:
                subscription.written_waits[offset] = due

    def _receipt(self, session: SessionModel, header: dict[int, Any]) -> None:
        producer = session.producers.get(header[Key.HANDLE])
        if producer is None:
            return
        topic, flat = session.of.get(header[Key.HANDLE]), header[Key.RECEIPTS]
        if topic is None:  # of a topic or of its successor
            return
        for sequence, first in zip(flat[::2], flat[1::2], strict=True):
            identities, _owner = self._batches.get((*producer, sequence), ([], session))
            if not identities:
                self.violated(f"a receipt for sequence {sequence} of {producer}, which nobody sent")
                continue
            self.counts["receipts"] += 1
            if topic.strategy != "reliable":
                continue
            for at, identity in enumerate(identities):
                offset = None if first == OFFSET_UNKNOWN else first + at
                if topic.receipted.setdefault(identity, offset) is None:
                    topic.receipted[identity] = offset
                if offset is not None:
                    self.is_at(topic, offset, identity, "a receipt")

    def is_at(self, topic: TopicModel, offset: int, identity: bytes, who: str) -> None:
        """Note that a client was told a message's offset."""
        if topic.name in self._lowest:
            generations = self._published.get(identity, set())
            if topic.generation not in generations and None not in generations:
                self.violated(
                    f"{identity!r} is at {offset} of the {topic.generation + 1}. topic {topic.name} says {who}: it was "
                    f"sent to the one of generation {generations}"
                )
        known = topic.at.setdefault(offset, identity)
        if known != identity:
            self.violated(f"offset {offset} of {topic.name} is {identity!r} says {who}, and was {known!r}")
        place = topic.place.setdefault(identity, offset)
        if place != offset:
            self.violated(
                f"{identity!r} of {topic.name} is at {offset} says {who}, and was at {place}: stored twice"
            )
        sent = self.sent.get(identity)
        if sent is None:
            self.violated(f"{identity!r} at {offset} of {topic.name}: nobody sent it, says {who}")
        elif sent.key and offset not in topic.key_of:
            topic.key_of[offset] = sent.key
            insort(topic.by_key.setdefault(sent.key, []), offset)
        topic.end = max(topic.end, offset + 1)

    # ---- deliveries ---------------------------------------------------------------------------------------------

    def _deliver(self, consumer: ConsumerModel, header: dict[int, Any], body: list[bytes]) -> None:
        subscription = consumer.subscription
        topic, first, count = subscription.topic, header[Key.OFFSET], header[Key.COUNT]
        self.counts["deliveries"] += count
        if not consumer.opened:
            self.violated(f"{consumer} of {subscription} gets {first} and is not open")
        consumer.credit -= count
        consumer.bytes_credit -= sum(map(len, body))
        if consumer.credit < 0:
            self.violated(
                f"{consumer} of {subscription} gets {count} messages, {-consumer.credit} more than its credit"
            )
        columns, payloads = header.get(Key.COLUMNS, 0), split_payloads(body[0], body[1])
        keys = split_column(body[2], count) if columns & Column.KEYS else [b""] * count
        offsets = _offsets(header)
        if topic.strategy != "reliable":
            self._deliver_unreliably(consumer, offsets, payloads)
            return
        self._note_times(topic, offsets, header[Key.TIMESTAMPS])
        if topic.limits.has("message_ttl_ms"):
            self._check_ttl(consumer, header)
        times = split_times(body[-1], count) if columns & Column.DELIVER_AT else None
        consumer.places += [(offset, bool(header.get(Key.SINGLY))) for offset in offsets]
        for at, (offset, payload, key) in enumerate(zip(offsets, payloads, keys, strict=True)):
            identity = identity_of(payload)
            self.is_at(topic, offset, identity, f"a delivery to {consumer} of {subscription}")
            sent = self.sent.get(identity)
            if sent is not None and sent.key != key:
                self.violated(f"{identity!r} comes with key {key!r}, it was sent with {sent.key!r}")
            if times is not None and sent is not None and times[at] != sent.deliver_at_ms:
                self.violated(
                    f"{identity!r} comes with time {times[at]}, it was sent with {sent.deliver_at_ms}"
                )
            if sent is not None and sent.deliver_at_ms and subscription.kind != "reader":
                self._check_time(subscription, offset, sent)
            self._deliver_one(consumer, offset, key, header.get(Key.ATTEMPT, 1))
        if subscription.kind == "shared":
            self._check_fairness(consumer)

    def _deliver_unreliably(self, consumer: ConsumerModel, offsets: list[int], payloads: list[bytes]) -> None:
        for offset, payload in zip(offsets, payloads, strict=True):
            if identity_of(payload) not in self.sent:
                self.violated(f"{payload[:40]!r} of {consumer.subscription}: nobody sent it")
            if consumer.given and offset <= consumer.reached:
                if consumer.anew_s >= consumer.subscription.disturbed_s:
                    self.violated(
                        f"{consumer} of {consumer.subscription} gets {offset} after {consumer.reached}"
                    )
                consumer.anew_s = consumer.subscription.disturbed_s
            consumer.given.add(offset)
            consumer.reached = offset

    def _note_times(self, topic: TopicModel, offsets: list[int], times: list[int]) -> None:
        at = 0
        for count, time_ms in zip(times[::2], times[1::2], strict=True):
            for offset in offsets[at : at + count]:
                if topic.times.setdefault(offset, time_ms) != time_ms:
                    self.violated(
                        f"{offset} of {topic.name} was taken at {time_ms}, and at {topic.times[offset]}"
                    )
            at += count

    def _check_ttl(self, consumer: ConsumerModel, header: dict[int, Any]) -> None:
        subscription = consumer.subscription
        ttl_ms = subscription.topic.limits.certain("message_ttl_ms", self.clock.now_s)
        clock = self.clocks[subscription.machine]
        if not ttl_ms or self.clock.now_s - clock.steps[-1][0] < WAITS_S or "b" in self.clocks:
            return
        late_ms = clock.highest_ms(self.clock.now_s, self.clock.now_s) - ttl_ms
        late_ms -= min(header[Key.TIMESTAMPS][1::2])
        if late_ms > 0 and self.clock.now_s - consumer.full_at_s > WAITS_S:
            who = f"{consumer} of {subscription}"
            self.violated(f"{who} gets {header[Key.OFFSET]}, which outlived its time by {late_ms} ms")

    def _check_time(self, subscription: SubscriptionModel, offset: int, sent: Sent) -> None:
        if subscription.topic.times[offset] >= sent.deliver_at_ms:
            return  # it was due when a broker received it, by that broker's clock
        clock = self.clocks[subscription.machine]
        early_ms = sent.deliver_at_ms - clock.highest_ms(sent.sent_s, self.clock.now_s)
        if early_ms > 0:
            self.violated(f"{subscription} delivers {offset} {early_ms} ms before its time")

    def _deliver_one(self, consumer: ConsumerModel, offset: int, key: bytes, attempt: int) -> None:
        subscription, now = consumer.subscription, self.clock.now_s
        who = f"{subscription} gives {consumer} offset {offset} (attempt {attempt})"
        if not subscription.moving:
            self._check_one(consumer, offset, key, who)
        subscription.not_before.pop(offset, None)
        subscription.written_waits.pop(offset, None)
        subscription.sends[offset] += 1
        subscription.ever[offset] += 1
        subscription.unsure.discard(offset)
        subscription.holds[offset] = Hold(consumer, now, attempt)
        consumer.given.add(offset)
        consumer.since.add(offset)

    def _check_one(self, consumer: ConsumerModel, offset: int, key: bytes, who: str) -> None:
        subscription, now = consumer.subscription, self.clock.now_s
        hold = subscription.holds.get(offset)
        if hold is not None and self._definite(subscription, hold) and not self._handed_over(consumer, hold):
            self.violated(f"{who}, which {hold.consumer} has since {hold.at_s:.6f}")
        elif hold is not None:
            subscription.delayed.add(offset)
        if offset in subscription.settled and now - consumer.full_at_s > WAITS_S:
            how = "confirmed as" if offset in subscription.confirmed else "known to be"
            self.violated(f"{who}, which is {how} acknowledged")
        due = subscription.not_before.get(offset)
        if due is not None and now < due - 1e-6:
            self.violated(f"{who} {due - now:.3f} s too early: it was given back with a delay")
        if (
            subscription.paused_s is not None
            and now - max(subscription.paused_s, consumer.full_at_s) > WAITS_S
        ):
            self.violated(f"{who}, and it is paused since {subscription.paused_s:.6f}")
        if subscription.in_order:
            self._check_gap(consumer, offset, who)
        elif subscription.kind == "key-shared" and key:
            self._check_key(consumer, offset, key, who)

    def _handed_over(self, consumer: ConsumerModel, hold: Hold) -> bool:
        """Return whether a Failover subscription has passed from the holder of a message to this consumer."""
        since = consumer.subscription.active_since.get(consumer)
        return consumer.subscription.kind == "failover" and since is not None and since >= hold.at_s

    def _check_gap(self, consumer: ConsumerModel, offset: int, who: str) -> None:
        subscription, given, reached = consumer.subscription, consumer.given, consumer.reached
        while reached < offset and (
            reached in given
            or reached in subscription.acknowledged
            or reached in subscription.delayed
            or subscription.waits_since_before(reached)
            or reached in subscription.done_otherwise
            or reached in subscription.told
            or subscription.maybe_poison(reached)
            or self._may_be_gone(subscription.topic, reached)
            or self._may_wait(subscription.topic, reached)
            or self._may_have_come_back(subscription, reached)
        ):
            reached += 1
        if reached < offset:
            self.violated(f"{who} before {reached}, which nobody acknowledged")
            reached = offset
        consumer.reached = reached

    def _check_key(self, consumer: ConsumerModel, offset: int, key: bytes, who: str) -> None:
        """Check that one consumer has a key at a time, and that older messages of it were delivered before."""
        subscription, topic, now = consumer.subscription, consumer.subscription.topic, self.clock.now_s
        for other in topic.by_key[key]:
            if other == offset or other in subscription.acknowledged or other in subscription.done_otherwise:
                continue
            hold = subscription.holds.get(other)
            if hold is not None:
                # the broker frees the key when retention takes a message, and tells its consumer after that
                gone = other in subscription.taken_by_retention or self._may_be_gone(topic, other)
                if hold.consumer is not consumer and not gone and self._definite(subscription, hold):
                    self.violated(f"{who} of key {key!r} while {hold.consumer} has {other}")
                continue
            if other in subscription.told:
                continue
            if other < (subscription.begin or 0):
                continue
            if other > offset or other in subscription.unsure or subscription.waits_since_before(other):
                continue
            if self._may_wait(topic, other) or subscription.back_at.get(other, 0.0) >= now - 1e-6:
                continue
            if (
                self._may_be_gone(topic, other)
                or subscription.maybe_poison(other)
                or now - consumer.full_at_s < WAITS_S
            ):
                continue
            self.violated(f"{who} of key {key!r} before {other}, which nobody has")
        highest = subscription.highest.get(key, -1)
        if offset < highest and not subscription.ever[offset] and not self._may_wait(topic, offset):
            self.violated(f"{who} of key {key!r} for the first time after {highest}")
        subscription.highest[key] = max(highest, offset)

    def _may_be_gone(self, topic: TopicModel, offset: int) -> bool:
        """Return whether a message may have outlived its topic's time to live, or been dropped by retention."""
        limits = topic.limits
        if not limits:
            return False
        identity = topic.at.get(offset)
        sent = None if identity is None else self.sent.get(identity)
        if sent is None:  # no client was told of it yet
            return True
        now_s, clocks = self.clock.now_s, list(self.clocks.values())
        return (
            limits.too_old("message_ttl_ms", sent.sent_s, now_s, clocks)
            or limits.too_old("retention_ms", sent.sent_s, now_s, clocks)
            or (
                limits.has("retention_bytes")
                and limits.too_many(sent.sent_s, self._bytes_from(topic, offset))
            )
        )

    def _bytes_from(self, topic: TopicModel, offset: int) -> Callable[[float], int]:
        """Return how many bytes the segment with this message and later ones may have had until a time."""
        begin, segments = self.segments.of(topic.name, offset)
        # messages that no client was told of may be in the log nevertheless
        behind = [
            each
            for each in self.sent.values()
            if each.topic == topic.name and topic.place.get(each.identity, begin) >= begin
        ]

        def until(time_s: float) -> int:
            sizes = [each.size + MESSAGE_BYTES for each in behind if each.sent_s <= time_s]
            return sum(sizes) + segments * SEGMENT_BYTES

        return until

    def all_may_be_gone(self, topic: TopicModel, offsets: range) -> bool:
        """Return whether all of these may be too old, or dropped by their topic's retention."""
        return all(offset in topic.told or self._may_be_gone(topic, offset) for offset in offsets)

    def _may_have_come_back(self, subscription: SubscriptionModel, offset: int) -> bool:
        """Return whether a consumer held a message for its whole timeout: it may wait for its back-off."""
        hold = subscription.holds.get(offset)
        return hold is not None and self.clock.now_s - hold.at_s >= subscription.ack_timeout_s - 1e-6

    def _may_wait(self, topic: TopicModel, offset: int) -> bool:
        """Return whether a message had a delivery time: later ones do not wait for it."""
        identity = topic.at.get(offset)
        sent = None if identity is None else self.sent.get(identity)
        return sent is None or sent.deliver_at_ms > 0

    def _check_fairness(self, consumer: ConsumerModel) -> None:
        now = self.clock.now_s
        consumer.passed_over = 0
        for other in consumer.subscription.consumers:
            if other is consumer:
                continue
            waits = (
                other.opened
                and other.opening is None
                and other.credit > 0
                and other.bytes_credit > 0
                and self._alive(other.session)
                and not other.session.uncertain
                and now - other.ready_since_s > 0.1
            )
            if not waits:
                other.passed_over = 0
            elif now > other.passed_at_s:  # messages handed out at one moment are sent in any order
                other.passed_over, other.passed_at_s = other.passed_over + 1, now
            if other.passed_over > PASSED_OVER_MAX:
                self.violated(
                    f"{other} of {consumer.subscription} has credit for {other.credit} since "
                    f"{other.ready_since_s:.3f} and was passed over {other.passed_over} times"
                )
                other.passed_over = 0

    # ---- the end ------------------------------------------------------------------------------------------------

    def missing(self, subscription: SubscriptionModel) -> list[int]:
        """Return the messages that were neither acknowledged to the broker nor done otherwise."""
        done, topic = subscription.acknowledged | subscription.done_otherwise, subscription.topic
        return [
            offset
            for offset in range(topic.end if subscription.begin is None else subscription.begin, topic.end)
            if offset not in done
            and offset not in subscription.told
            and not subscription.maybe_poison(offset)
            and not self._may_be_gone(topic, offset)
        ]

    def dead_letters(
        self, subscription: SubscriptionModel, letters: list[tuple[dict[str, str], bytes]], *, quiet: bool
    ) -> None:
        """Check the letters in a subscription's dead-letter topic; `quiet`: nothing ever failed around it."""
        topic, found = subscription.topic, Counter[int]()
        most = subscription.options["max_deliveries"]
        for attributes, payload in letters:
            offset = int(attributes["ister.offset"])
            found[offset] += 1
            who = f"the dead letter of {offset} of {subscription}"
            if topic.at.get(offset) != identity_of(payload):
                self.violated(f"{who} is {payload[:40]!r}, and was {topic.at.get(offset)!r}")
            if (attributes["ister.topic"], attributes["ister.subscription"]) != (
                topic.name,
                subscription.name,
            ):
                self.violated(f"{who} says it is of {attributes}")
            if int(attributes["ister.attempts"]) < most:
                self.violated(f"{who} says {attributes['ister.attempts']} attempts, it may fail {most} times")
            if not subscription.maybe_poison(offset):
                self.violated(
                    f"{who}: it was delivered {subscription.ever[offset]} times, it may fail {most} times"
                )
        if (
            quiet
            and not subscription.was_moved
            and (twice := [offset for offset, count in found.items() if count > 1])
        ):
            self.violated(f"{subscription} has two dead letters of {twice}")
        for offset in range(subscription.begin or 0, topic.end):
            settled = offset in subscription.acknowledged or found[offset] or subscription.was_moved
            settled = settled or offset in subscription.told  # lost, and reported
            if not settled and not self._may_be_gone(topic, offset):
                self.violated(f"{subscription}: {offset} is neither acknowledged nor a dead letter")

    def _may_have_gone(self, topic: TopicModel, offset: int) -> bool:
        """Return whether retention may have taken a message from the log."""
        identity = topic.at.get(offset)
        sent = None if identity is None else self.sent.get(identity)
        if sent is None:
            return topic.limits.has("retention_ms", "retention_bytes", "retention_acknowledged")
        return self._may_have_gone_from(topic, sent, offset)

    def _may_have_gone_from(self, topic: TopicModel, sent: Sent, offset: int) -> bool:
        """Return whether retention may have taken the message at this offset."""
        limits, now_s = topic.limits, self.clock.now_s
        return (
            limits.done_with(sent.sent_s)
            or limits.too_old("retention_ms", sent.sent_s, now_s, list(self.clocks.values()))
            or limits.too_many(sent.sent_s, self._bytes_from(topic, offset))
        )

    def _check_sought(self, topic: TopicModel, start: int) -> None:
        """Check that a move to a time passed over no message that was received then or later, in log order."""
        known = sorted((offset, time_ms) for offset, time_ms in topic.times.items() if offset >= start)
        for who, time_ms, position in topic.sought:
            due = next((offset for offset, taken_ms in known if taken_ms >= time_ms), position)
            if position > due:
                self.violated(
                    f"{who} was moved to {time_ms}, which is {position}: {due} was taken at {topic.times[due]}"
                )

    def _check_begin(self, subscription: SubscriptionModel) -> None:
        """Check that a subscription from latest passed over nothing sent when it was known to exist."""
        topic = subscription.topic
        for offset in range(subscription.begin or 0):
            sent = self.sent.get(topic.at.get(offset, b""))
            if sent is not None and sent.sent_s > subscription.began_s:
                self.violated(
                    f"{subscription} begins at {subscription.begin}: {offset} was sent after it was there"
                )

    def read_back(self, topic: TopicModel, found: list[tuple[int, bytes]]) -> None:
        """Check what a reader got from the first to the last offset."""
        limits = topic.limits
        start = found[0][0] if found else topic.end * (bool(limits) or topic.lost)
        for subscription in self.subscriptions.values():
            if subscription.topic is topic and limits.has("retention_acknowledged"):
                needed = [offset for offset in self.missing(subscription) if offset < start]
                if needed:
                    self.violated(
                        f"{topic.name} begins at {start}, and {subscription} has not acknowledged {needed[:5]}"
                    )
        for subscription in self.subscriptions.values():
            if subscription.topic is topic:
                self._check_begin(subscription)
        told = topic.told
        kept = [
            offset for offset in range(start) if offset not in told and not self._may_have_gone(topic, offset)
        ]
        if kept:
            self.violated(f"{topic.name} begins at {start}, and nothing allowed that {kept[:5]} went")
        self._check_sought(topic, start)
        self.counts["messages trimmed"] += start
        expected = start
        for offset, payload in found:
            while expected < offset and expected in told:
                expected += 1
            if offset != expected:
                self.violated(f"{topic.name} is not dense: {offset} comes where {expected} is due")
                return
            expected += 1
            self.is_at(topic, offset, identity_of(payload), "the reader of everything")
        self._check_receipts(topic, start, {identity_of(payload) for _, payload in found})

    def _check_receipts(self, topic: TopicModel, start: int, there: set[bytes]) -> None:
        """Check that every message with a receipt is there, from `start` on, unless something allowed its removal."""
        told = topic.told
        # An unknown offset belongs to a message whose receipt names none: one message per offset.
        empty = [offset for offset in range(start) if offset not in topic.at]
        empty_told = sorted(offset for offset in told if offset not in topic.at and offset >= start)
        for identity, said in topic.receipted.items():
            if identity in there:
                continue
            place = topic.place.get(identity)
            if place is None and empty_told:
                empty_told.pop()
            elif place is None and empty:
                sent = self.sent.get(identity)
                if sent is not None and self._may_have_gone_from(topic, sent, empty.pop()):
                    continue
                self.violated(f"{identity!r} of {topic.name} is lost: its receipt said {said}")
            elif place is None or (place >= start and place not in told):
                self.violated(f"{identity!r} of {topic.name} is lost: its receipt said {said}")
