"""Opening producers and consumers in the broker for tests, and publishing.

It decides who may open what, and accepts batches. `delivering.py` sends to consumers and handles their frames.
"""

from __future__ import annotations

from ister import bodies, wire
from ister.clock import Clock
from ister.errors import RemoteError
from ister.subscriptions import READER
from ister.testing import failures
from ister.testing.catalogue import Catalogue
from ister.testing.model import Consumer, Producer, Record, Session, Subscription, Topic
from ister.testing.sessions import Sessions
from ister.wire import Column, Key, Limit, Type


class Handles:
    """The handles that clients open and close in their sessions, and what they publish."""

    def __init__(
        self, catalogue: Catalogue, sessions: Sessions, clock: Clock, limits: dict[int, int]
    ) -> None:
        self._catalogue = catalogue
        self._sessions = sessions
        self._clock = clock
        self._limits = limits

    def on_open(self, session: Session, header: wire.Header) -> None:
        """Answer OPEN_PRODUCER or OPEN_CONSUMER; raises `RemoteError`."""
        topic = self._catalogue.topic(header[Key.TOPIC])
        answer: wire.Header = {
            Key.TYPE: Type.OPENED,
            Key.REF: header[Key.REF],
            Key.HANDLE: header[Key.HANDLE],
            Key.STRATEGY: topic.strategy,
        }
        if header[Key.TYPE] == Type.OPEN_PRODUCER:
            answer |= self._open_producer(session, topic, header)
        else:
            answer |= self._open_consumer(session, topic, header)
        self._sessions.say(session, answer)

    def on_close(self, session: Session, header: wire.Header) -> None:
        """Answer CLOSE."""
        self._sessions.leave(session, header[Key.HANDLE])
        self._sessions.say(session, {Key.TYPE: Type.DONE, Key.REF: header[Key.REF]})

    # ---- producers -----------------------------------------------------------------------------------------------

    def _open_producer(self, session: Session, topic: Topic, header: wire.Header) -> wire.Header:
        producer = Producer(session, header[Key.HANDLE], topic, header[Key.PRODUCER])
        session.handles[producer.handle] = producer
        older = topic.owners.get(producer.producer_id)
        topic.owners[producer.producer_id] = producer
        if older is not None and older.session is not session:
            self._sessions.close(older, RemoteError("producer-fenced", "a newer producer has this id"))
        stored = topic.expected.get(producer.producer_id, 0)
        expected = topic.expected[producer.producer_id] = max(stored, header.get(Key.SEQUENCE, 0))
        return {Key.SEQUENCE: expected, Key.BYTES: self._limits[Limit.PRODUCER_WINDOW_BYTES]}

    def on_publish(self, producer: Producer, header: wire.Header, body: list[bytes]) -> None:
        """Store a batch that is the next one of its producer, and answer with its receipt; raises `RemoteError`."""
        columns = header.get(Key.COLUMNS, 0)
        frames = [bodies.pack_lengths(body), body[0]] if len(body) == 1 and not columns else body
        count = bodies.check_batch(
            frames,
            columns,
            message_bytes_max=self._limits[Limit.MESSAGE_BYTES_MAX],
            batch_bytes_max=self._limits[Limit.BATCH_BYTES_MAX],
        )
        topic, sequence = producer.topic, header[Key.SEQUENCE]
        expected = topic.expected[producer.producer_id]
        if sequence > expected:
            raise RemoteError("sequence-gap", f"sequence {sequence} came, {expected} was expected")
        if sequence == expected:
            first = len(topic.records)
            topic.records += _records(frames, columns, count, self._clock.time_ms())
            topic.expected[producer.producer_id] = sequence + count
            topic.placed[producer.producer_id, sequence] = first
        first = topic.placed.get((producer.producer_id, sequence), wire.OFFSET_UNKNOWN)
        self._sessions.say(
            producer.session,
            {Key.TYPE: Type.RECEIPT, Key.HANDLE: producer.handle, Key.RECEIPTS: [sequence, first]},
        )

    # ---- consumers -----------------------------------------------------------------------------------------------

    def _open_consumer(self, session: Session, topic: Topic, header: wire.Header) -> wire.Header:
        number, name, kind = header[Key.HANDLE], header[Key.SUBSCRIPTION], header[Key.SUBSCRIPTION_TYPE]
        self._sessions.leave(session, number)
        subscription = self._subscription(topic, name, kind, header)
        consumer = Consumer(
            session,
            number,
            subscription,
            header.get(Key.PRIORITY, 0),
            header[Key.MESSAGES],
            header[Key.BYTES],
            header.get(Key.SPARSE, False),
        )
        session.handles[number] = consumer
        subscription.consumers.append(consumer)
        subscription.consumers.sort(key=lambda each: each.priority)
        answer: wire.Header = {Key.OFFSET: subscription.again[0] if subscription.again else subscription.next}
        if Key.INSTANCE in header:
            mine = topic.subscriptions.get(name)
            of_topic = str(topic.number)
            answer[Key.INSTANCE] = of_topic if mine is None else f"{of_topic}.{mine.made}"
        if Key.SOUGHT in header and subscription.kind != READER and topic.strategy == "reliable":
            consumer.counts_moves = True
            answer[Key.SOUGHT] = subscription.moves
        return answer

    def _subscription(self, topic: Topic, name: str, kind: str, header: wire.Header) -> Subscription:
        """Return the subscription of a consumer, created as needed; raises `RemoteError` if it may not attach."""
        start, options = header.get(Key.START, "latest"), header.get(Key.ARGUMENTS, {})
        if kind == READER:
            return self._catalogue.read(topic, name, start)
        subscription = topic.subscriptions.get(name)
        if subscription is None:
            subscription = self._catalogue.subscribe(topic, name, kind, start, options)
        if subscription.kind != kind:
            raise RemoteError("subscription-type", f"subscription {name!r} is {subscription.kind}")
        for option, value in options.items():
            has = failures.options_of(subscription).get(option)
            if has != value:
                text = f"subscription {name!r} has {option} {has!r}, not {value!r}"
                raise RemoteError("subscription-options", text)
        if kind == "exclusive" and header.get(Key.FORCE):
            taken = RemoteError("taken-over", f"another consumer took subscription {name!r} over")
            for older in list(subscription.consumers):
                self._sessions.close(older, taken)
        if kind == "exclusive" and subscription.consumers:
            raise RemoteError("subscription-busy", f"subscription {name!r} has a consumer")
        return subscription


def _records(frames: list[bytes], columns: int, count: int, now_ms: int) -> list[Record]:
    """Return the messages of a checked batch."""
    nothing = [b""] * count
    keys = bodies.split_column(frames[2], count) if columns & Column.KEYS else nothing
    at = 2 + (columns & Column.KEYS)
    attributes = bodies.split_column(frames[at], count) if columns & Column.ATTRIBUTES else nothing
    times = bodies.split_times(frames[-1], count) if columns & Column.DELIVER_AT else [0] * count
    payloads = bodies.split_payloads(frames[0], frames[1])
    return [Record(*each, now_ms) for each in zip(payloads, keys, attributes, times, strict=True)]
